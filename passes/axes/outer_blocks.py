"""Units inside outer blocks: where heads or convolution groups may each keep units of their own.

A unit of an inner variable is one position in every block of the outer one. Only counts must agree where the two always
stand together, so the position may differ from block to block: rank within each block, then pair by rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from passes.axes.expressions import Axis, Permuted, Product, Sum, Variable, leaves


def outer_variables(
    tensors: Iterable[Sequence[Axis]], values: Iterable[Sequence[Axis]], groups: Iterable[Variable]
) -> dict[Variable, Variable]:
    """For each variable of `groups` the outer one under which it stands everywhere, where there is one.

    tensors: axes of parameters and buffers, in each of which both must be direct factors of one product, since a
    dimension is sliced by itself. values: axes of all tensors on the tape; each must hold both, or not the inner.
    """
    candidates: dict[Variable, set[Variable]] = {}
    for axes in tensors:
        for axis in axes:
            for inner, outers in _nested(axis):
                candidates[inner] = candidates.get(inner, outers) & outers
    grouped = set(groups)
    candidates = {v: found for v, found in candidates.items() if found and v in grouped}
    for axes in values:
        here = {v for axis in axes for v in leaves(axis)}
        for variable in here & candidates.keys():
            candidates[variable] = candidates[variable] & here
    return {v: min(found, key=lambda o: o.number) for v, found in candidates.items() if found}


def _nested(axis: Axis) -> Iterable[tuple[Variable, set[Variable]]]:
    """Each variable of an axis with the variables that stand before it in the same product."""
    if isinstance(axis, Variable):
        yield axis, set()
    elif isinstance(axis, Permuted):
        yield from ((v, set()) for v in leaves(axis))
    elif isinstance(axis, Sum):
        for term in axis.terms:
            yield from _nested(term)
    elif isinstance(axis, Product):
        before: set[Variable] = set()
        for factor in axis.factors:
            if isinstance(factor, Variable):
                yield factor, set() if factor in before else set(before)
                before.add(factor)
            else:
                yield from ((v, set()) for v in leaves(factor))


def block_of(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The outer unit (k,) of each column of `inner`, given the positions of the outer and of the inner units."""
    place = np.full(int(max(outer.max(), inner.max())) + 1, -1)
    for unit, positions in enumerate(outer):
        place[positions] = unit
    found: np.ndarray = place[inner[0]]
    return found
