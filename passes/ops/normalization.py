"""Normalisations: statistics over an axis mix its units, everything else is carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passes.axes.expressions import ONE, Axis
from passes.ops.call import Call, aten
from passes.ops.equation import solve
from passes.ops.literals import Site, restated
from passes.ops.meta_shapes import empty_on_meta, is_dense, made, plain
from passes.ops.references import Masked
from passes.ops.table import rule, states
from passes.ops.zeros import CARRIED, FIRST, normalised


def _others(call: Call) -> list[tuple[int, torch.Tensor]]:
    """The outputs after the first: statistics, which graphs of ATen calls have beside the result."""
    return list(enumerate(call.outputs))[1:]


def _standardised(
    x: torch.Tensor, here: torch.Tensor, dims: tuple[int, ...], epsilon: float
) -> tuple[torch.Tensor, ...]:
    """`x` centred and scaled over those positions along `dims` where `here` is one, with their mean and scale."""
    count = here.sum(dims, keepdim=True).clamp_min(1)
    mean = (x * here).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * here).sum(dims, keepdim=True) / count
    scale = (variance + epsilon).rsqrt()
    return (x - mean) * scale, mean, scale


def _affine(x: torch.Tensor, call: Masked, shape: Sequence[int]) -> torch.Tensor:
    """`x` times the call's weight plus its bias, as far as it has them, in this shape."""
    weight, bias = call["weight"], call["bias"]
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _surviving_layer(call: Masked) -> tuple[torch.Tensor, ...]:
    x, shape = call["input"], call["normalized_shape"]
    dims = range(x.dim() - len(shape), x.dim())
    result, mean, scale = _standardised(x, call.present(dims), tuple(dims), call["eps"])
    return _affine(result, call, shape), mean, scale


def _surviving_batch(call: Masked) -> tuple[torch.Tensor, ...]:
    x = call["input"]
    dims = (0, *range(2, x.dim()))
    result, mean, scale = _standardised(x, call.present(dims), dims, call["eps"])
    return _affine(result, call, (1, -1) + (1,) * (x.dim() - 2)), mean.flatten(), scale.flatten()


def _surviving_groups(call: Masked) -> tuple[torch.Tensor, ...]:
    x = call["input"]
    grouped, here = (t.reshape(x.shape[0], call["group"], -1) for t in (x, call.present([1])))
    result, mean, scale = _standardised(grouped, here, (-1,), call["eps"])
    return _affine(result.reshape(x.shape), call, (1, -1) + (1,) * (x.dim() - 2)), mean[..., 0], scale[..., 0]


def _surviving_weight(call: Masked) -> tuple[torch.Tensor, ...]:
    v, dim = call["v"], call["dim"] % call["v"].dim()
    norm = v.square().sum([d for d in range(v.dim()) if d != dim], keepdim=True).sqrt()
    return torch.where(norm > 0, v * (call["g"] / norm), 0), norm


def _batch_on_meta(x: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...] | None:
    if not is_dense(x):
        return None
    shape, dtype = x.shape, x.dtype
    statistics = shape[1:2] if args[4] else (0,)
    return empty_on_meta(shape, dtype, x.stride()), empty_on_meta(statistics, dtype), empty_on_meta(statistics, dtype)


def _layer_on_meta(x: torch.Tensor, normalized: Sequence[int], *args: object) -> tuple[torch.Tensor, ...] | None:
    dims, shape = len(normalized), tuple(x.shape)
    if x.itemsize < 4 or not 0 < dims <= len(shape) or shape[-dims:] != tuple(normalized):
        return None
    statistics = shape[:-dims] + (1,) * dims
    return made(x, shape), made(x, statistics), made(x, statistics)


def _normalized_shape(site: Site) -> None:
    given = site.argument(1, "normalized_shape")
    value = site.value[0] if isinstance(site.value, (tuple, list)) else site.value
    site.set(1, "normalized_shape", restated(site, given, value.axes[len(value.axes) - len(given) :]))


NORM: dict[str, Any] = {"roles": {"weight": "scale"}, "fuses": True}


@rule(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit_functional, aten._batch_norm_no_update, aten._batch_norm_with_update,
    aten.cudnn_batch_norm, aten.miopen_batch_norm, zeros=normalised(centred=True, mean="running_mean"),
    running_statistics=True, **NORM,
)  # fmt: skip
def batch_norm(call: Call) -> list[list[Axis]]:
    """Channels are carried; statistics of the batch (weights standardised by batch_norm, say) mix all other axes."""
    batch, channels, *space = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = call.arguments.get(name)
        if tensor is not None:
            call.tie(channels, *call.axes(tensor))
    batch, channels = call.space.resolve(batch), call.space.resolve(channels)
    if call.get("training") or call.get("running_mean") is None:
        call.mix([batch, *space])
    statistics = [[channels] if tuple(t.shape) == (channels.size,) else call.fixed(n) for n, t in _others(call)]
    return [[batch, channels, *space], *statistics]


states(aten.native_batch_norm, meta=plain(_batch_on_meta))
states(aten.native_batch_norm, aten._native_batch_norm_legit, aten._batch_norm_with_update, reference=_surviving_batch)
states(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training, sizeless=True)


@rule(
    aten.native_layer_norm, zeros=normalised(centred=True), reference=_surviving_layer, literals=_normalized_shape,
    values=("eps",), meta=plain(_layer_on_meta), **NORM,
)  # fmt: skip
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


states(aten.batch_norm, running_statistics=True)
states(aten.layer_norm, aten.rms_norm, literals=_normalized_shape, values=("eps",))


@rule(aten._weight_norm_interface, zeros=FIRST, reference=_surviving_weight)
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


@rule(aten.renorm, zeros=CARRIED, sizeless=True)
def renorm(call: Call) -> list[list[Axis]]:
    """Each slice along one dimension scaled down to a largest norm, which is taken over all others."""
    axes = call.axes("self")
    call.contract(*(axis for dim, axis in enumerate(axes) if dim != call["dim"] % len(axes)))
    return [axes]


@rule(aten.native_group_norm, zeros=normalised(centred=True), reference=_surviving_groups, **NORM)
def group_norm(call: Call) -> list[list[Axis]]:
    """Statistics over each group of channels: whole groups can go, or the same number of channels from each."""
    outputs, solved = solve(
        call, "n (g c) ..., (g c)?, (g c)? -> n (g c) ...",
        [call["input"], call["weight"], call["bias"]], {"g": call["group"]},
    )  # fmt: skip
    call.mix(solved["c"])
    for name in ("group", "num_groups"):  # as ATen and as torch call it
        call.literal(name, solved["g"])
    call.literal("C", call.axes("input")[1])
    return outputs + [[call.axes("input")[0], solved["g"]] for _ in _others(call)]
