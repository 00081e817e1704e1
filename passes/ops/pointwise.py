"""Operators that compute each output position from the same position of every operand."""

from __future__ import annotations

from passes.axes.expressions import Axis
from passes.ops.registry import Call, aten, rule
from passes.ops.zeros import CARRIED, EVALUATED, FIRST, NEVER


def broadcast(call: Call, tensors, output: int = 0) -> list[Axis]:
    """The axes of an output onto which `tensors` are broadcast, aligned at the last dimension."""
    sizes = call.outputs[output].shape
    result: list[Axis | None] = [None] * len(sizes)
    for tensor in tensors:
        axes = call.axes(tensor)
        for back, axis in enumerate(reversed(axes), 1):
            if back > len(sizes) or axis.size != sizes[-back] or axis.size == 1:
                continue
            known = result[-back]
            result[-back] = axis if known is None else call.tie(known, axis)
    fixed = call.fixed(output) if None in result else ()
    return [fixed[dim] if axis is None else call.space.resolve(axis) for dim, axis in enumerate(result)]


@rule("pointwise", zeros=EVALUATED)
def pointwise(call: Call) -> list[list[Axis]]:
    """Every operator that torch tags as pointwise, and its in-place variant."""
    return [broadcast(call, call.tensors, number) for number in range(len(call.outputs))]


rule(
    aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, aten.lift_fresh_copy, aten.lift, aten.copy,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.fill, aten.zero, aten._prelu_kernel, aten.masked_fill,
    aten.where, aten._conj, aten.hardswish, aten.log_sigmoid_forward, zeros=EVALUATED,
)(pointwise)  # fmt: skip


rule(aten.empty_like, zeros=NEVER)(pointwise)


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


@rule(aten.bucketize, zeros=NEVER)
def bucketize(call: Call) -> list[list[Axis]]:
    """Each value's place among boundaries, all of which stay."""
    call.freeze(call.axes("boundaries"), "boundaries between which values are sorted")
    return [call.axes("self")]


@rule(aten.glu, zeros=CARRIED)
def glu(call: Call) -> list[list[Axis]]:
    """The first half of one axis gates with the second."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    first, second = call.cut(axes[dim], axes[dim].size // 2)
    axes[dim] = call.tie(first, second)
    return [axes]
