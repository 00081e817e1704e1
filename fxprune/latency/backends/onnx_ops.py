"""ATen operators as ONNX operators: one small function a rule: elementwise, contractions, attention.

A rule gets a `Call` and returns the name of the ONNX value (a tuple of names where the operator returns several).
Weights are random here (see onnx_graph.py), so a rule owes shapes and cost, not numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxprune.latency.backends.onnx_graph import Call, rule
from passes.process.torch_private import schema_of

aten = torch.ops.aten

# ---- elementwise -----------------------------------------------------------------------------------------------------

for _packets, _op in {
    (aten.relu,): "Relu",
    (aten.sigmoid,): "Sigmoid",
    (aten.tanh,): "Tanh",
    (aten.hardswish,): "HardSwish",
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
    (aten.mul,): "Mul",
    (aten.div,): "Div",
    (aten.maximum,): "Max",
    (aten.minimum,): "Min",
}.items():

    def _binary(call: Call, op: str = _op) -> str:
        return call.graph.emit(op, call.onnx("self"), call.onnx("other"))

    rule(*_packets)(_binary)


@rule(aten.add, aten.sub, aten.rsub)
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


@rule(aten.silu)
def _silu(call: Call) -> str:
    value = call.onnx("self")
    return call.graph.emit("Mul", value, call.graph.emit("Sigmoid", value))


@rule(aten.gelu)
def _gelu(call: Call) -> str:
    return call.graph.emit("Gelu", call.onnx("self"), approximate=call.arg("approximate"))


@rule(aten.mish)
def _mish(call: Call) -> str:
    return call.graph.emit("Mish", call.onnx("self"))


@rule(aten.hardsigmoid)
def _hardsigmoid(call: Call) -> str:
    return call.graph.emit("HardSigmoid", call.onnx("self"), alpha=1 / 6, beta=0.5)


@rule(aten.hardtanh)
def _hardtanh(call: Call) -> str:
    return _clip(call, call.arg("min_val"), call.arg("max_val"))


@rule(aten.clamp, aten.clamp_min, aten.clamp_max)
def _clamp(call: Call) -> str:
    names = {argument.name for argument in schema_of(call.func).arguments}
    return _clip(call, call.arg("min") if "min" in names else None, call.arg("max") if "max" in names else None)


def _clip(call: Call, low: float | None, high: float | None) -> str:
    bounds = ["" if bound is None else call.graph.scalar(bound, call.dtype) for bound in (low, high)]
    return call.graph.emit("Clip", call.onnx("self"), *bounds)


@rule(aten.leaky_relu)
def _leaky_relu(call: Call) -> str:
    return call.graph.emit("LeakyRelu", call.onnx("self"), alpha=float(call.arg("negative_slope")))


@rule(aten.elu)
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
