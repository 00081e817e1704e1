"""ATen operators as ONNX operators: one small function a rule, `RULES` holds them all.

A rule gets a `Call` and returns the name of the ONNX value (a tuple of names where the operator returns several).
Weights are random here (see onnx_graph.py), so a rule owes shapes and cost, not numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from fxprune.latency.onnx_graph import Call

Rule = Callable[["Call"], Any]
RULES: dict[Any, Rule] = {}
aten = torch.ops.aten


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Register a function for some operators; a second rule for one of them is an error."""

    def register(function: Rule) -> Rule:
        for packet in packets:
            if packet in RULES:
                raise ValueError(f"{packet} has a rule already")
            RULES[packet] = function
        return function

    return register


# ---- elementwise -----------------------------------------------------------------------------------------------------

for _packets, _op in {
    (aten.relu, aten.relu_): "Relu",
    (aten.sigmoid, aten.sigmoid_): "Sigmoid",
    (aten.tanh, aten.tanh_): "Tanh",
    (aten.hardswish, aten.hardswish_): "HardSwish",
    (aten.exp,): "Exp",
    (aten.log,): "Log",
    (aten.sqrt,): "Sqrt",
    (aten.abs,): "Abs",
    (aten.neg,): "Neg",
    (aten.erf,): "Erf",
    (aten.sin,): "Sin",
    (aten.cos,): "Cos",
    (aten.reciprocal,): "Reciprocal",
    (aten.bitwise_not, aten.logical_not): "Not",
}.items():

    def _unary(call: Call, op: str = _op) -> str:
        return call.graph.emit(op, call.onnx("self"))

    rule(*_packets)(_unary)

for _packets, _op in {
    (aten.mul, aten.mul_): "Mul",
    (aten.div, aten.div_): "Div",
    (aten.maximum,): "Max",
    (aten.minimum,): "Min",
}.items():

    def _binary(call: Call, op: str = _op) -> str:
        return call.graph.emit(op, call.onnx("self"), call.onnx("other"))

    rule(*_packets)(_binary)


@rule(aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub)
def _add(call: Call) -> str:
    op = "Add" if call.func.overloadpacket in (aten.add, aten.add_) else "Sub"
    first, second = call.onnx("self"), call.onnx("other")
    if call.arg("alpha") != 1:
        second = call.graph.emit("Mul", second, call.graph.scalar(call.arg("alpha"), call.dtype))
    if call.func.overloadpacket is aten.rsub:
        first, second = second, first
    return call.graph.emit(op, first, second)


@rule(aten.pow)
def _pow(call: Call) -> str:
    return call.graph.emit("Pow", call.onnx("self"), call.onnx("exponent"))


@rule(aten.rsqrt)
def _rsqrt(call: Call) -> str:
    return call.graph.emit("Reciprocal", call.graph.emit("Sqrt", call.onnx("self")))


@rule(aten.silu, aten.silu_)
def _silu(call: Call) -> str:
    value = call.onnx("self")
    return call.graph.emit("Mul", value, call.graph.emit("Sigmoid", value))


@rule(aten.gelu)
def _gelu(call: Call) -> str:
    return call.graph.emit("Gelu", call.onnx("self"), approximate=call.arg("approximate"))


@rule(aten.mish, aten.mish_)
def _mish(call: Call) -> str:
    return call.graph.emit("Mish", call.onnx("self"))


@rule(aten.hardsigmoid, aten.hardsigmoid_)
def _hardsigmoid(call: Call) -> str:
    return call.graph.emit("HardSigmoid", call.onnx("self"), alpha=1 / 6, beta=0.5)


@rule(aten.hardtanh, aten.hardtanh_)
def _hardtanh(call: Call) -> str:
    return _clip(call, call.arg("min_val"), call.arg("max_val"))


@rule(aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_max)
def _clamp(call: Call) -> str:
    names = {argument.name for argument in call.func._schema.arguments}
    return _clip(call, call.arg("min") if "min" in names else None, call.arg("max") if "max" in names else None)


def _clip(call: Call, low: float | None, high: float | None) -> str:
    bounds = ["" if bound is None else call.graph.scalar(bound, call.dtype) for bound in (low, high)]
    return call.graph.emit("Clip", call.onnx("self"), *bounds)


@rule(aten.leaky_relu, aten.leaky_relu_)
def _leaky_relu(call: Call) -> str:
    return call.graph.emit("LeakyRelu", call.onnx("self"), alpha=float(call.arg("negative_slope")))


@rule(aten.elu, aten.elu_)
def _elu(call: Call) -> str:
    return call.graph.emit("Elu", call.onnx("self"), alpha=float(call.arg("alpha")))


@rule(aten._prelu_kernel)
def _prelu(call: Call) -> str:
    return call.graph.emit("PRelu", call.onnx("self"), call.onnx("weight"))


@rule(aten.where)
def _where(call: Call) -> str:
    return call.graph.emit("Where", call.onnx("condition"), call.onnx("self"), call.onnx("other"))


# ---- convolutions, matrix products, normalisations -------------------------------------------------------------------


@rule(aten.convolution)
def _convolution(call: Call) -> str:
    padding = list(call.arg("padding"))
    shared: dict[str, Any] = {
        "strides": list(call.arg("stride")),
        "pads": padding + padding,
        "dilations": list(call.arg("dilation")),
        "group": call.arg("groups"),
    }
    inputs = [call.onnx("input"), call.onnx("weight")]
    if call.arg("bias") is not None:
        inputs.append(call.onnx("bias"))
    if call.arg("transposed"):
        return call.graph.emit("ConvTranspose", *inputs, output_padding=list(call.arg("output_padding")), **shared)
    return call.graph.emit("Conv", *inputs, **shared)


@rule(aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit)
@rule(aten.cudnn_batch_norm)
def _batch_norm(call: Call) -> tuple[str, ...]:
    value = call.onnx("input")
    channels = call.arg("input").shape[1]
    last = call.graph.nodes[-1] if call.graph.nodes else None
    if call.graph.fold and last is not None and last.op in ("Conv", "ConvTranspose") and last.outputs[0] == value:
        if len(last.inputs) == 2:  # folding a norm gives the convolution a bias
            inputs = (*last.inputs, call.graph.weight((channels,), call.dtype))
            call.graph.nodes[-1] = type(last)(last.op, inputs, last.outputs, last.attributes)
        return (value, "", "")
    scale, shift = (
        call.onnx(name) or call.graph.array(np.full(channels, fill, call.numpy_dtype))
        for name, fill in (("weight", 1), ("bias", 0))
    )
    variance = call.graph.emit("Abs", call.onnx("running_var"))  # random weights may be negative, this may not
    mean, epsilon = call.onnx("running_mean"), float(call.arg("eps"))
    out = call.graph.emit("BatchNormalization", value, scale, shift, mean, variance, epsilon=epsilon)
    return (out, "", "")


@rule(aten.native_layer_norm)
def _layer_norm(call: Call) -> tuple[str, ...]:
    normalised = list(call.arg("normalized_shape"))
    scale = call.onnx("weight") or call.graph.array(np.ones(normalised, call.numpy_dtype))
    inputs = [call.onnx("input"), scale]
    if call.arg("bias") is not None:
        inputs.append(call.onnx("bias"))
    value = call.graph.emit("LayerNormalization", *inputs, axis=-len(normalised), epsilon=float(call.arg("eps")))
    return (value, "", "")


@rule(aten.native_group_norm)
def _group_norm(call: Call) -> tuple[str, ...]:
    # As the exporter writes it: instance normalisation of the groups, then scale and shift of the channels.
    shape, groups, channels = call.shape, call.arg("group"), call.arg("C")
    grouped = call.graph.emit("Reshape", call.onnx("input"), call.graph.ints([shape[0], groups, -1]))
    ones, zeros = (call.graph.array(np.full(groups, fill, call.numpy_dtype)) for fill in (1, 0))
    normal = call.graph.emit("InstanceNormalization", grouped, ones, zeros, epsilon=float(call.arg("eps")))
    value = call.graph.emit("Reshape", normal, call.graph.ints(shape))
    for op, name in (("Mul", "weight"), ("Add", "bias")):
        if call.arg(name) is not None:
            spread = call.graph.ints([channels, *[1] * (len(shape) - 2)])
            value = call.graph.emit(op, value, call.graph.emit("Reshape", call.onnx(name), spread))
    return (value, "", "")


@rule(aten.addmm)
def _addmm(call: Call) -> str:
    return call.graph.emit("Gemm", call.onnx("mat1"), call.onnx("mat2"), call.onnx("self"))


@rule(aten.mm, aten.bmm)
def _matmul(call: Call) -> str:
    return call.graph.emit("MatMul", call.onnx("self"), call.onnx("mat2"))


@rule(aten.baddbmm)
def _baddbmm(call: Call) -> str:
    product = call.graph.emit("MatMul", call.onnx("batch1"), call.onnx("batch2"))
    return call.graph.emit("Add", product, call.onnx("self"))


@rule(aten._softmax, aten._safe_softmax)
def _softmax(call: Call) -> str:
    return call.graph.emit("Softmax", call.onnx("self"), axis=call.arg("dim"))


@rule(aten._log_softmax)
def _log_softmax(call: Call) -> str:
    return call.graph.emit("LogSoftmax", call.onnx("self"), axis=call.arg("dim"))


@rule(aten.embedding)
def _embedding(call: Call) -> str:
    return call.graph.emit("Gather", call.onnx("weight"), call.onnx("indices"), axis=0)


# ---- pooling and reductions ------------------------------------------------------------------------------------------


@rule(aten.max_pool2d_with_indices, aten.max_pool2d)
def _max_pool(call: Call) -> Any:
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
        return _unsupported(call, f"pools {tuple(before)} into {tuple(after)}, which is no multiple")
    window = [b // a for b, a in zip(before, after, strict=True)]
    return call.graph.emit("AveragePool", call.onnx("self"), kernel_shape=window, strides=window)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _unsupported(call: Call, why: str) -> str:
    from fxprune.latency.onnx_graph import UnsupportedOperator

    raise UnsupportedOperator(f"{call.func} (node {call.graph.scope}) {why}")


for _packets, _op in {
    (aten.mean,): "ReduceMean",
    (aten.sum,): "ReduceSum",
    (aten.amax,): "ReduceMax",
    (aten.amin,): "ReduceMin",
}.items():

    def _reduce(call: Call, op: str = _op) -> str:
        named = {argument.name for argument in call.func._schema.arguments}
        dims = call.arg("dim") if "dim" in named else None
        axes = () if dims is None else (call.graph.ints([dims] if isinstance(dims, int) else list(dims)),)
        keep = int(bool(call.arg("keepdim"))) if "keepdim" in named else 0
        return call.graph.emit(op, call.onnx("self"), *axes, keepdims=keep)

    rule(*_packets)(_reduce)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@rule(aten.detach, aten.alias, aten.clone, aten.lift_fresh, aten.contiguous, aten.dropout, aten.lift_fresh_copy)
def _identity(call: Call) -> str:
    return call.recorder.value(call.args[0])


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
    values = [call.recorder.value(t) for t in call.arg("tensors")]
    return call.graph.emit("Concat", *values, axis=call.arg("dim"))


@rule(aten.stack)
def _stack(call: Call) -> str:
    dim = call.arg("dim") % len(call.shape)
    shape = [1 if d == dim else n for d, n in enumerate(call.shape)]
    values = [call.graph.emit("Reshape", call.recorder.value(t), call.graph.ints(shape)) for t in call.arg("tensors")]
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


@rule(aten.as_strided_, aten.as_strided)
def _as_strided(call: Call) -> str:
    # adaptive_avg_pool2d(1) restates the strides of its result so; any other use reads memory as it lies.
    if math.prod(call.arg("self").shape) != math.prod(call.shape):
        return _unsupported(call, "reads memory as it lies")
    return call.graph.emit("Reshape", call.onnx("self"), call.graph.ints(call.shape))


@rule(aten.index)
def _index_tensor(call: Call) -> str:
    given = [(dim, index) for dim, index in enumerate(call.arg("indices")) if index is not None]
    if len(given) != 1 or given[0][1].dtype == torch.bool:
        return _unsupported(call, "indexes more than one dimension")
    dim, index = given[0]
    # The index is data, which this graph does not carry: any positions cost the same.
    zeros = call.graph.ints([0] * index.numel())
    positions = call.graph.emit("Reshape", zeros, call.graph.ints(tuple(index.shape)))
    return call.graph.emit("Gather", call.onnx("self"), positions, axis=dim)
