"""Which positions of its operand a call takes: slices, selections, orders, rolls and padding as lists of places.

A cut module must take what is left of the same positions. A length says nothing of that: ``x[:, 3:4]`` is one channel
before and after channels in front of it are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from passes.ops.constant_indices import listed

aten = torch.ops.aten
Shape = Sequence[int]
Picked = dict[int, list[int]]  # by dimension of the operand the places taken of it, in order; -1 for padding


def picked(func: Any, args: Sequence[Any], kwargs: dict[str, Any], shape: Shape, index_of: Callable) -> Picked | None:
    """What a call on an operand of `shape` takes of each dimension that it does not take whole; None for others.

    index_of: the numbers of an index among the arguments, None where the program does not state them.
    """
    rule = _RULES.get(func)
    if rule is None:
        return None
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    return rule(given, list(shape), index_of)


def picks(func: Any) -> bool:
    """Whether `picked` knows the operator."""
    return func in _RULES


def renumbered(places: Sequence[int], taken: np.ndarray, remain: np.ndarray) -> list[int] | None:
    """Those `places` of an axis that are left, by their new numbers.

    taken: which of the places belong to positions of the result that stay. remain: which positions of the axis stay.
    None where a position that stays takes one that does not.
    """
    new = np.cumsum(remain) - 1
    kept = [place for place, stays in zip(places, taken, strict=True) if stays]
    if any(place >= 0 and not remain[place] for place in kept):
        return None
    return [int(new[place]) if place >= 0 else -1 for place in kept]


def _slice(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked:
    dim = given["dim"] % len(shape)
    return {dim: list(range(shape[dim]))[slice(given["start"], given["end"], given["step"])]}


def _select(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked:
    dim = given["dim"] % len(shape)
    return {dim: [given["index"] % shape[dim]]}


def _roll(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked:
    dims = [dim % len(shape) for dim in given["dims"]]
    pairs = zip(dims, given["shifts"], strict=False)
    return {dim: [(place - shift) % shape[dim] for place in range(shape[dim])] for dim, shift in pairs if shape[dim]}


def _pad(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked:
    found = {}
    pairs = given["pad"]
    for number in range(len(pairs) // 2):
        dim = len(shape) - 1 - number
        before, after = pairs[2 * number : 2 * number + 2]
        inner = list(range(shape[dim]))[max(0, -before) : shape[dim] + min(0, after)]
        found[dim] = [-1] * max(0, before) + inner + [-1] * max(0, after)
    return found


def _index_select(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked | None:
    dim = given["dim"] % len(shape)
    places = listed(index_of(given["index"]), shape[dim])
    return None if places is None else {dim: places}


def _index(given: dict[str, Any], shape: list[int], index_of: Callable) -> Picked | None:
    dims = [dim for dim, index in enumerate(given["indices"]) if index is not None]
    if len(dims) != 1:
        return None
    places = listed(index_of(given["indices"][dims[0]]), shape[dims[0]])
    return None if places is None else {dims[0]: places}


_RULES: dict[Any, Callable[[dict[str, Any], list[int], Callable], Picked | None]] = {
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.roll.default: _roll,
    aten.constant_pad_nd.default: _pad,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
}
ORDERED = frozenset({aten.index_select.default, aten.index.Tensor, aten._unsafe_index.Tensor})
