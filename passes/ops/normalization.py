"""Normalisations: statistics over an axis mix its units, everything else is carried."""

from __future__ import annotations

import torch

from passes.axes.expressions import ONE, Axis
from passes.ops.equation import solve
from passes.ops.registry import Call, aten, rule
from passes.ops.zeros import FIRST, normalised


def _others(call: Call) -> list[tuple[int, torch.Tensor]]:
    """The outputs after the first: statistics, which graphs of ATen calls have beside the result."""
    return list(enumerate(call.outputs))[1:]


@rule(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit_functional, aten._batch_norm_no_update, aten._batch_norm_with_update,
    aten.cudnn_batch_norm, aten.miopen_batch_norm, zeros=normalised(centred=True, mean="running_mean"),
)  # fmt: skip
def batch_norm(call: Call) -> list[list[Axis]]:
    """Channels are carried; statistics of the batch (weights standardised by batch_norm, say) mix all other axes."""
    operands = [call.get(name) for name in ("input", "weight", "bias", "running_mean", "running_var")]
    outputs, _ = solve(call, "n c ..., c?, c?, c?, c? -> n c ...", operands)
    if call.get("training") or operands[3] is None:
        call.mix([axis for dim, axis in enumerate(outputs[0]) if dim != 1])
    channels = call.axes("input")[1]
    return outputs + [[channels] if tuple(t.shape) == (channels.size,) else call.fixed(n) for n, t in _others(call)]


@rule(aten.native_layer_norm, zeros=normalised(centred=True))
def layer_norm(call: Call) -> list[list[Axis]]:
    """Statistics over the last dimensions, then an affine map of them."""
    axes = call.axes("input")
    last = axes[len(axes) - len(call["normalized_shape"]) :]
    for parameter in (call.get("weight"), call.get("bias")):
        if parameter is not None:
            for axis, other in zip(last, call.axes(parameter), strict=True):
                call.tie(axis, other)
    call.mix(last)
    result = [call.space.resolve(axis) for axis in axes]
    lead = result[: len(axes) - len(last)]
    return [result, *([*lead, *call.fixed(n)[len(lead) :]] for n, _ in _others(call))]


@rule(aten._weight_norm_interface, zeros=FIRST)
def weight_norm(call: Call) -> list[list[Axis]]:
    """g v / |v|, normed over all dimensions but one; along that one a zeroed unit is 0/0, so it is mixed."""
    axes, scale = call.axes("v"), call.axes("g")
    dim = call["dim"] % len(axes)
    for axis, other in zip(axes, scale, strict=True):
        if axis.size == other.size:
            call.tie(axis, other)
    call.contract(*(axis for d, axis in enumerate(axes) if d != dim))
    call.mix(axes[dim])
    return [axes, [axis if d == dim else ONE for d, axis in enumerate(axes)]]


@rule(aten.native_group_norm, zeros=normalised(centred=True))
def group_norm(call: Call) -> list[list[Axis]]:
    """Statistics over each group of channels: whole groups can go, or the same number of channels from each."""
    outputs, solved = solve(
        call, "n (g c) ..., (g c)?, (g c)? -> n (g c) ...",
        [call["input"], call["weight"], call["bias"]], {"g": call["group"]},
    )  # fmt: skip
    call.mix(solved["c"])
    call.literal("num_groups", solved["g"])
    return outputs + [[call.axes("input")[0], solved["g"]] for _ in _others(call)]
