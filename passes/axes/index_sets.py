"""Which positions of a resolved axis its units take, which remain when some are removed, and what its length is.

Everything here reads trees of `passes.axes.expressions` and changes none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from passes.axes.expressions import Axis, Constant, Permuted, Product, Sum, Variable, concat, leaves, nest, permute


def positions(axis: Axis) -> dict[Variable, np.ndarray]:
    """For each variable of a resolved axis the positions that its units take, an integer array (size, k).

    >>> c = Variable(0, 2)
    >>> positions(nest([c, Constant(3)]))[c].tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if isinstance(axis, Variable):
        return {axis: np.arange(axis.size)[:, None]}
    if isinstance(axis, Constant):
        return {}
    if isinstance(axis, Permuted):
        place = np.empty(axis.size, dtype=np.int64)
        place[np.asarray(axis.order)] = np.arange(axis.size)
        return {v: np.sort(place[index], axis=1) for v, index in positions(axis.variable).items()}
    found: dict[Variable, np.ndarray] = {}

    def add(variable: Variable, index: np.ndarray) -> None:
        known = found.get(variable)
        joined = index if known is None else np.concatenate([known, index], axis=1)
        found[variable] = joined

    if isinstance(axis, Sum):
        offset = 0
        for term in axis.terms:
            for variable, index in positions(term).items():
                add(variable, index + offset)
            offset += term.size
        return found
    stride, before = axis.size, 1
    for factor in axis.factors:
        stride //= factor.size
        outer = np.arange(before) * (factor.size * stride)
        inner = np.arange(stride)
        for variable, index in positions(factor).items():
            spread = outer[None, :, None, None] + index[:, None, :, None] * stride + inner[None, None, None, :]
            add(variable, spread.reshape(variable.size, -1))
        before *= factor.size
    return {
        v: np.stack([np.unique(row) for row in index]) if _repeats(axis, v) else index for v, index in found.items()
    }


def _repeats(axis: Axis, variable: Variable) -> bool:
    return sum(v is variable for v in leaves(axis)) > 1


@dataclass(frozen=True)
class BlockMask:
    """Kept units of a variable that differ from block to block of an outer one: boolean rows (len(outer), size)."""

    outer: Variable
    rows: np.ndarray


Mask: TypeAlias = "np.ndarray | BlockMask"


def kept(mask: Mask) -> int:
    """How many units a mask keeps (in each block)."""
    return int(np.count_nonzero(mask.rows[0] if isinstance(mask, BlockMask) else mask))


def survivors(axis: Axis, keep: Mapping[Variable, Mask]) -> np.ndarray:
    """Which positions of a resolved axis remain, a boolean array (size,), given boolean masks of kept units.

    An axis that holds a variable without the outer one that its blocks belong to gives the first block's positions:
    their number is right, and no parameter is sliced by it.
    """
    if isinstance(axis, Variable):
        mask = keep.get(axis)
        if isinstance(mask, BlockMask):
            row: np.ndarray = mask.rows[0]
            return row
        return np.ones(axis.size, dtype=bool) if mask is None else mask
    if isinstance(axis, Constant):
        return np.ones(axis.size, dtype=bool)
    if isinstance(axis, Permuted):
        ordered: np.ndarray = survivors(axis.variable, keep)[np.asarray(axis.order)]
        return ordered
    if isinstance(axis, Sum):
        return np.concatenate([survivors(term, keep) for term in axis.terms])
    sizes = [factor.size for factor in axis.factors]
    grid = np.ones(sizes, dtype=bool)
    for place, factor in enumerate(axis.factors):
        mask = keep.get(factor) if isinstance(factor, Variable) else None
        if isinstance(mask, BlockMask) and mask.outer in axis.factors:
            outer = axis.factors.index(mask.outer)
            rows = mask.rows if outer < place else mask.rows.T
            shape = [size if d in (place, outer) else 1 for d, size in enumerate(sizes)]
            grid &= rows.reshape(shape)
        else:
            grid &= survivors(factor, keep).reshape([-1 if d == place else 1 for d in range(len(sizes))])
    return grid.reshape(-1)


def length(axis: Axis, width: Callable[[Variable], object]) -> Any:
    """The number of positions of a resolved axis, with `width` giving the value of each variable.

    Any values with + and * will do: integers, numpy arrays, polynomials.
    """
    if isinstance(axis, Variable):
        return width(axis)
    if isinstance(axis, Constant):
        return axis.size
    if isinstance(axis, Permuted):
        return length(axis.variable, width)
    if isinstance(axis, Sum):
        total = length(axis.terms[0], width)
        for term in axis.terms[1:]:
            total = total + length(term, width)
        return total
    total = length(axis.factors[0], width)
    for factor in axis.factors[1:]:
        total = total * length(factor, width)
    return total


def rename(axis: Axis, replace: Mapping[Variable, Axis], keep: Mapping[Variable, Mask]) -> Axis:
    """A resolved axis after pruning: each variable replaced, reorderings restricted to the kept units."""
    if isinstance(axis, Variable):
        return replace.get(axis, axis)
    if isinstance(axis, Constant):
        return axis
    if isinstance(axis, Sum):
        return concat([rename(term, replace, keep) for term in axis.terms])
    if isinstance(axis, Product):
        return nest([rename(factor, replace, keep) for factor in axis.factors])
    mask = survivors(axis.variable, keep)
    rank = np.cumsum(mask) - 1
    return permute(rename(axis.variable, replace, keep), [int(rank[u]) for u in axis.order if mask[u]])
