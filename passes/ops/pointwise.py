"""Operators that compute each output position from the same position of every operand."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from passes.axes.expressions import ONE, Axis
from passes.ops.call import Call, aten
from passes.ops.meta_shapes import Shape, empty_on_meta, filled, made, plain, shaped
from passes.ops.table import rule, states
from passes.ops.zeros import CARRIED, EVALUATED, FIRST, NEVER

_size = attrgetter("size")


def broadcast(call: Call, tensors: Sequence[torch.Tensor], output: int = 0) -> list[Axis]:
    """The axes of an output onto which `tensors` are broadcast, aligned at the last dimension."""
    sizes = call.outputs[output].shape
    if len(tensors) == 1:
        axes = call.axes(tensors[0])
        if tuple(map(_size, axes)) == sizes:
            return [ONE if axis.size == 1 else axis for axis in axes]
    result: list[Axis | None] = [ONE if size == 1 else None for size in sizes]
    for tensor in tensors:
        axes = call.axes(tensor)
        for back, axis in enumerate(reversed(axes), 1):
            if back > len(sizes) or axis.size != sizes[-back] or axis.size == 1:
                continue
            known = result[-back]
            result[-back] = axis if known is None else call.tie(known, axis)
    if len(tensors) == 1 and None not in result:
        return result  # type: ignore[return-value]
    fixed = call.fixed(output) if None in result else ()
    return [fixed[dim] if axis is None else call.space.resolve(axis) for dim, axis in enumerate(result)]


def _alike(first: torch.Tensor, other: object) -> bool:
    if isinstance(other, torch.Tensor):
        same = other.shape == first.shape and other.dtype == first.dtype and other.is_meta
        return same and other.stride() == first.stride()
    return not isinstance(other, complex)


def _broadcast_layout(first: torch.Tensor, other: torch.Tensor) -> tuple[Shape, Shape | None] | None:
    """Shape and strides of two tensors of which one is broadcast, where they are plain to see."""
    if not other.is_meta or other.dtype != first.dtype or not other.numel() or not first.numel():
        return None
    rank = max(first.dim(), other.dim())
    left, right = ([1] * (rank - t.dim()) + list(t.shape) for t in (first, other))
    if any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        return None
    shape = [max(a, b) for a, b in zip(left, right, strict=True)]
    if first.is_contiguous() and other.is_contiguous():
        return shape, None
    full, small = (first, other) if first.numel() >= other.numel() else (other, first)
    # The order of the dimensions is that of the full one: the other has none, or comes second.
    decided = small.shape == full.shape or sum(b > 1 for b in small.shape) <= 1
    layout = filled(full) if decided and list(full.shape) == shape else None
    return None if layout is None else (shape, layout)


def _same(first: torch.Tensor, *others: object) -> torch.Tensor | None:
    """A result like the first operand, where the others are like it."""
    strides = filled(first) if all(_alike(first, other) for other in others) else None
    return None if strides is None else made(first, first.shape, strides)


def _written(first: torch.Tensor, *others: object) -> torch.Tensor | None:
    return first if all(_alike(first, other) or _fills(other, first) for other in others) else None


def _fills(other: object, first: torch.Tensor) -> bool:
    """Whether `other` has a number for each of `first`, no two of which lie in one place of memory."""
    if not isinstance(other, torch.Tensor) or not other.is_meta:
        return False
    return other.shape == first.shape and other.dtype == first.dtype and filled(first) == first.stride()


def _broadcast(first: torch.Tensor, *others: Any) -> torch.Tensor | None:
    layout = None
    if len(others) == 1 and not _alike(first, others[0]):
        layout = _broadcast_layout(first, others[0])
    return _same(first, *others) if layout is None else made(first, *layout)


def _compared(first: torch.Tensor, other: object) -> torch.Tensor | None:
    strides = filled(first)
    return None if strides is None else empty_on_meta(first.shape, torch.bool, strides)


def _masked(first: torch.Tensor, mask: torch.Tensor, value: object) -> Shape | None:
    like = mask.is_meta and mask.dtype is torch.bool and mask.shape == first.shape and mask.is_contiguous()
    return first.shape if like and not isinstance(value, complex) else None


def _copied(tensor: torch.Tensor, memory_format: torch.memory_format | None = None) -> torch.Tensor | None:
    plain_copy = tensor.is_meta and memory_format is torch.contiguous_format
    return made(tensor, tensor.shape) if plain_copy else None


@rule("pointwise", zeros=EVALUATED, sizeless=True, fuses=True)
def pointwise(call: Call) -> list[list[Axis]]:
    """Every operator that torch tags as pointwise, and its in-place variant."""
    return [broadcast(call, call.tensors, number) for number in range(len(call.outputs))]


rule(
    aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, aten.lift_fresh_copy, aten.lift, aten.copy,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.fill, aten.zero, aten._prelu_kernel, aten.masked_fill,
    aten.where, aten._conj, aten.hardswish, aten.log_sigmoid_forward, zeros=EVALUATED, sizeless=True,
)(pointwise)  # fmt: skip


rule(aten.empty_like, zeros=NEVER, sizeless=True, undetermined=True)(pointwise)
states(aten.clone, meta=_copied)
states(aten.masked_fill.Scalar, meta=shaped(_masked))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    states(getattr(aten, _name).Scalar, meta=plain(_compared))
states(
    aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, fuses=True,
)  # fmt: skip
_SAME = "relu hardtanh silu gelu hardswish sigmoid hardsigmoid tanh leaky_relu elu clamp clamp_min clamp_max"
for _name in _SAME.split():
    states(getattr(aten, _name).default, meta=plain(_same))
    states(getattr(aten, f"{_name}_").default, meta=plain(_written))
for _name in ("add", "sub", "mul", "div"):
    states(getattr(aten, _name).Tensor, meta=plain(_broadcast))
    states(getattr(aten, _name).Scalar, meta=plain(_same))
    states(getattr(aten, f"{_name}_").Tensor, getattr(aten, f"{_name}_").Scalar, meta=plain(_written))


@rule(
    aten.rand_like, aten.randn_like, aten.bernoulli, aten.uniform, aten.normal_functional, aten.exponential,
    zeros=NEVER,
)  # fmt: skip
def drawn(call: Call) -> list[list[Axis]]:
    """A number drawn for every position: fewer positions would get others, and nothing could be proven."""
    axes = pointwise(call)
    if call.get("train", "training") is not False:
        for result in axes:
            call.freeze(result, "random numbers are drawn along this axis")
    return [[call.space.resolve(axis) for axis in result] for result in axes]


rule(aten.native_dropout, aten.rrelu_with_noise, aten.rrelu_with_noise_functional, zeros=FIRST)(drawn)
states(aten.native_dropout, fuses=True)


@rule(aten.bucketize, zeros=NEVER)
def bucketize(call: Call) -> list[list[Axis]]:
    """Each value's place among boundaries, all of which stay."""
    call.freeze(call.axes("boundaries"), "boundaries between which values are sorted")
    return [call.axes("self")]


@rule(aten.searchsorted.Tensor, zeros=NEVER)
def searchsorted(call: Call) -> list[list[Axis]]:
    """Each value's place in a sorted sequence, or in one of its own for each row; these stay, and so do the values."""
    *lead, values = call.axes("self")
    *rows, places = call.axes("sorted_sequence")
    for axis, other in zip(lead, rows, strict=False):
        call.tie(axis, other)
    call.freeze([places, *([values] if rows else [])], "values are sorted into this axis")
    return [[call.space.resolve(axis) for axis in (*lead, values)]]


@rule(aten.glu, zeros=CARRIED)
def glu(call: Call) -> list[list[Axis]]:
    """The first half of one axis gates with the second."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    first, second = call.cut(axes[dim], axes[dim].size // 2)
    axes[dim] = call.tie(first, second)
    return [axes]
