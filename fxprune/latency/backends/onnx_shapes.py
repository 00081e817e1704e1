"""ATen operators as ONNX operators, continued: pooling, reductions, and what only moves or reshapes data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fxprune.latency.backends.onnx_graph import Call, rule, unsupported
from passes.process.torch_private import schema_of

aten = torch.ops.aten

# ---- pooling and reductions ------------------------------------------------------------------------------------------


@rule(aten.max_pool2d_with_indices, aten.max_pool2d)
def _max_pool(call: Call) -> str | tuple[str, ...]:
    kernel = list(call.arg("kernel_size"))
    padding = _pair(call.arg("padding"))
    value = call.graph.emit(
        "MaxPool",
        call.onnx("self"),
        kernel_shape=kernel,
        strides=_pair(call.arg("stride") or kernel),
        pads=padding + padding,
        dilations=_pair(call.arg("dilation")),
        ceil_mode=int(call.arg("ceil_mode")),
    )
    return value if call.func.overloadpacket is aten.max_pool2d else (value, "")


@rule(aten.avg_pool2d)
def _avg_pool(call: Call) -> str:
    kernel, padding = _pair(call.arg("kernel_size")), _pair(call.arg("padding"))
    return call.graph.emit(
        "AveragePool",
        call.onnx("self"),
        kernel_shape=kernel,
        strides=_pair(call.arg("stride") or kernel),
        pads=padding + padding,
        ceil_mode=int(call.arg("ceil_mode")),
        count_include_pad=int(call.arg("count_include_pad")),
    )


@rule(aten._adaptive_avg_pool2d)
def _adaptive_avg_pool(call: Call) -> str:
    before, after = call.arg("self").shape[-2:], call.shape[-2:]
    if tuple(before) == tuple(after):
        return call.onnx("self")
    if any(b % a for b, a in zip(before, after, strict=True)):
        return unsupported(call, f"pools {tuple(before)} into {tuple(after)}, which is no multiple")
    window = [b // a for b, a in zip(before, after, strict=True)]
    return call.graph.emit("AveragePool", call.onnx("self"), kernel_shape=window, strides=window)


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


for _packets, _op in {
    (aten.mean,): "ReduceMean",
    (aten.sum,): "ReduceSum",
    (aten.amax,): "ReduceMax",
    (aten.amin,): "ReduceMin",
}.items():

    def _reduce(call: Call, op: str = _op) -> str:
        named = {argument.name for argument in schema_of(call.func).arguments}
        dims = call.arg("dim") if "dim" in named else None
        axes = () if dims is None else (call.graph.ints([dims] if isinstance(dims, int) else list(dims)),)
        keep = int(bool(call.arg("keepdim"))) if "keepdim" in named else 0
        return call.graph.emit(op, call.onnx("self"), *axes, keepdims=keep)

    rule(*_packets)(_reduce)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@rule(aten.detach, aten.alias, aten.clone, aten.lift_fresh, aten.contiguous, aten.dropout, aten.lift_fresh_copy)
def _identity(call: Call) -> str:
    return call.value(call.args[0])


@rule(aten._to_copy)
def _to_copy(call: Call) -> str:
    from onnx import helper

    if call.arg("self").dtype == call.dtype:
        return call.onnx("self")
    kind = helper.np_dtype_to_tensor_dtype(call.numpy_dtype)
    return call.graph.emit("Cast", call.onnx("self"), to=kind)


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_copy, aten.unsqueeze, aten.squeeze, aten.unflatten)
def _reshape(call: Call) -> str:
    return call.graph.emit("Reshape", call.onnx("self"), call.graph.ints(call.shape))


@rule(aten.expand)
def _expand(call: Call) -> str:
    if tuple(call.arg("self").shape) == call.shape:
        return call.onnx("self")
    return call.graph.emit("Expand", call.onnx("self"), call.graph.ints(call.shape))


@rule(aten.permute)
def _permute(call: Call) -> str:
    rank = call.arg("self").dim()
    return call.graph.emit("Transpose", call.onnx("self"), perm=[d % rank for d in call.arg("dims")])


@rule(aten.t, aten.transpose)
def _transpose(call: Call) -> str:
    order = list(range(call.arg("self").dim()))
    first, second = (0, 1) if call.func.overloadpacket is aten.t else (call.arg("dim0"), call.arg("dim1"))
    if len(order) < 2:
        return call.onnx("self")
    order[first], order[second] = order[second], order[first]
    return call.graph.emit("Transpose", call.onnx("self"), perm=order)


@rule(aten.cat)
def _cat(call: Call) -> str:
    values = [call.value(t) for t in call.arg("tensors")]
    return call.graph.emit("Concat", *values, axis=call.arg("dim"))


@rule(aten.stack)
def _stack(call: Call) -> str:
    dim = call.arg("dim") % len(call.shape)
    shape = [1 if d == dim else n for d, n in enumerate(call.shape)]
    values = [call.graph.emit("Reshape", call.value(t), call.graph.ints(shape)) for t in call.arg("tensors")]
    return call.graph.emit("Concat", *values, axis=dim)


@rule(aten.split, aten.split_with_sizes)
def _split(call: Call) -> tuple[str, ...]:
    dim = call.arg("dim")
    sizes = [t.shape[dim] for t in call.out]
    return call.graph.emit_many("Split", call.onnx("self"), call.graph.ints(sizes), outputs=len(sizes), axis=dim)


@rule(aten.unbind)
def _unbind(call: Call) -> tuple[str, ...]:
    dim, value = call.arg("dim"), call.onnx("self")
    return tuple(call.graph.emit("Gather", value, _index(call, i), axis=dim) for i in range(len(call.out)))


@rule(aten.select)
def _select(call: Call) -> str:
    return call.graph.emit("Gather", call.onnx("self"), _index(call, call.arg("index")), axis=call.arg("dim"))


def _index(call: Call, index: int) -> str:
    return call.graph.array(np.asarray(index, dtype=np.int64))


@rule(aten.slice)
def _slice(call: Call) -> str:
    dim, end = call.arg("dim"), call.arg("end")
    if tuple(call.arg("self").shape) == call.shape and call.arg("step") == 1:
        return call.onnx("self")
    bounds = (call.arg("start") or 0, min(end, 2**31 - 1) if end is not None else 2**31 - 1)
    ints = [call.graph.ints([value]) for value in (*bounds, dim, call.arg("step"))]
    return call.graph.emit("Slice", call.onnx("self"), *ints)


@rule(aten.constant_pad_nd)
def _pad(call: Call) -> str:
    pairs = list(call.arg("pad"))
    rank = call.arg("self").dim()
    before = [0] * (rank - len(pairs) // 2) + pairs[-2::-2]
    after = [0] * (rank - len(pairs) // 2) + pairs[::-2]
    return call.graph.emit("Pad", call.onnx("self"), call.graph.ints(before + after))


@rule(aten.pixel_shuffle)
def _pixel_shuffle(call: Call) -> str:
    return call.graph.emit("DepthToSpace", call.onnx("self"), blocksize=call.arg("upscale_factor"), mode="CRD")


@rule(aten.upsample_nearest2d, aten.upsample_bilinear2d)
def _upsample(call: Call) -> str:
    linear = call.func.overloadpacket is aten.upsample_bilinear2d
    aligned = linear and call.arg("align_corners")
    return call.graph.emit(
        "Resize",
        call.onnx("self"),
        "",
        "",
        call.graph.ints(call.shape),
        mode="linear" if linear else "nearest",
        coordinate_transformation_mode="align_corners" if aligned else ("half_pixel" if linear else "asymmetric"),
    )


@rule(aten.roll)
def _roll(call: Call) -> str:
    value = call.onnx("self")
    for shift, dim in zip(call.arg("shifts"), call.arg("dims"), strict=True):
        size = call.shape[dim]
        cut = size - shift % size
        pieces = call.graph.emit_many("Split", value, call.graph.ints([cut, size - cut]), outputs=2, axis=dim)
        value = call.graph.emit("Concat", pieces[1], pieces[0], axis=dim) if cut < size else value
    return value


@rule(aten.zeros, aten.ones, aten.full, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty, aten.scalar_tensor)
def _constant(call: Call) -> str:
    """Zeros, ones, full: as many ones (what they hold costs nothing)."""
    return call.graph.array(np.ones(call.shape, call.numpy_dtype))


@rule(aten.as_strided)
def _as_strided(call: Call) -> str:
    # adaptive_avg_pool2d(1) restates the strides of its result so; any other use reads memory as it lies.
    if math.prod(call.arg("self").shape) != math.prod(call.shape):
        return unsupported(call, "reads memory as it lies")
    return call.graph.emit("Reshape", call.onnx("self"), call.graph.ints(call.shape))


@rule(aten.index)
def _index_tensor(call: Call) -> str:
    given = [(dim, index) for dim, index in enumerate(call.arg("indices")) if index is not None]
    if len(given) != 1 or given[0][1].dtype == torch.bool:
        return unsupported(call, "indexes more than one dimension")
    dim, index = given[0]
    # The index is data, which this graph does not carry: any positions cost the same.
    zeros = call.graph.ints([0] * index.numel())
    positions = call.graph.emit("Reshape", zeros, call.graph.ints(tuple(index.shape)))
    return call.graph.emit("Gather", call.onnx("self"), positions, axis=dim)
