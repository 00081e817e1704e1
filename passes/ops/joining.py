"""Operators that put axes one after another: concatenation, stacking, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passes.axes.expressions import Axis, concat
from passes.ops.call import Call, aten
from passes.ops.literals import Site
from passes.ops.meta_shapes import made
from passes.ops.table import NumbersOf, Picked, rule, states
from passes.ops.zeros import CARRIED, Unit, Zeros


def _padded(unit: Unit) -> bool:
    """Zeros, where it pads with these; of a unit that the padding makes no operand says otherwise."""
    return not unit.argument("value") and all(unit.zeros())


_PADDED = Zeros(_padded, _padded)


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    """The result on meta; None where torch is to say what is wrong, or which dtype and layout it has."""
    first = tensors[0]
    rank, shape = first.dim(), list(first.shape)
    if not rank:
        return None
    dim %= rank
    for number, other in enumerate(tensors):
        sizes = list(other.shape)
        if (
            not (other.is_meta and other.dtype == first.dtype and len(sizes) == rank and other.numel())
            or sizes[:dim] + sizes[dim + 1 :] != shape[:dim] + shape[dim + 1 :]
        ):
            return None
        shape[dim] += sizes[dim] if number else 0
    in_rows = (
        rank not in (4, 5) or all([t.is_contiguous() for t in tensors]) or any(map(_is_not_channels_last, tensors))
    )
    return made(first, shape) if in_rows else None


def _is_not_channels_last(tensor: torch.Tensor) -> bool:
    """Whether places in a row lie closer in memory than channels would let them: one such makes a result in rows."""
    return tensor.stride(-1) < tensor.stride(1) * tensor.shape[1]


def _pad(site: Site) -> None:
    given = list(site.argument(1, "pad"))
    axes = site.value.axes
    for number in range(len(given) // 2):
        axis = axes[len(axes) - 1 - number]
        assert site.input is not None
        old = site.input[len(axes) - 1 - number]
        if axis.size == site.new_size(axis) and old.size == site.new_size(old):
            continue
        before, after = given[2 * number : 2 * number + 2]
        if isinstance(before, int):
            kept = site.before(axis, before) if before > 0 else -site.before(old, -before)
            given[2 * number] = kept
        if isinstance(after, int):
            first = axis.size - after if after > 0 else old.size + after
            base = axis if after > 0 else old
            kept = site.new_size(base) - site.before(base, first)
            given[2 * number + 1] = kept if after > 0 else -kept
    site.set(1, "pad", given)


def _taken_padded(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked:
    found = {}
    pairs = given["pad"]
    for number in range(len(pairs) // 2):
        dim = len(shape) - 1 - number
        before, after = pairs[2 * number : 2 * number + 2]
        if before == after == 0:
            continue
        inner = list(range(shape[dim]))[max(0, -before) : shape[dim] + min(0, after)]
        found[dim] = [-1] * max(0, before) + inner + [-1] * max(0, after)
    return found


@rule(aten.cat, zeros=CARRIED, sizeless=True, meta=_joined)
def cat(call: Call) -> list[list[Axis]]:
    """A sum of the operands' axes; the other dimensions are the same."""
    parts = [call.axes(t) for t in call["tensors"] if tuple(t.shape) != (0,)]
    dim = call["dim"] % len(parts[0])
    result = list(parts[0])
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != dim:
                call.tie(result[number], axis)
    result[dim] = concat([axes[dim] for axes in parts])
    return [[call.space.resolve(axis) for axis in result]]


@rule(aten.stack, zeros=CARRIED, sizeless=True)
def stack(call: Call) -> list[list[Axis]]:
    """A new dimension, one position an operand; the operands' dimensions are the same."""
    parts = [call.axes(t) for t in call["tensors"]]
    result = list(parts[0])
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            call.tie(result[number], axis)
    fixed = call.fixed()
    dim = call["dim"] % len(fixed)
    result = [call.space.resolve(axis) for axis in result]
    return [result[:dim] + [fixed[dim]] + result[dim:]]


@rule(aten.constant_pad_nd, zeros=_PADDED, literals=_pad, values=("value",), picks=_taken_padded)
def constant_pad(call: Call) -> list[list[Axis]]:
    """New units before and after an axis, whose numbers are literals of the program; negative padding cuts."""
    axes, pad = call.axes("self"), call["pad"]
    for number in range(len(pad) // 2):
        dim, (before, after) = len(axes) - 1 - number, pad[2 * number : 2 * number + 2]
        axis = axes[dim]
        axis = call.slice(axis, max(0, -before), axis.size - max(0, -after))
        axes[dim] = concat([call.fresh(max(0, before)), axis, call.fresh(max(0, after))])
    return [axes]


states(aten.pad, literals=_pad, values=("value",))
