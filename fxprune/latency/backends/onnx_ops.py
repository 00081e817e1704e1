"""ATen operators as ONNX operators: a table of those that are one operator, and functions for others.

A rule gets a `Call` and returns the name of the ONNX value (a tuple of names where the operator returns several).
Weights are random here (see onnx_graph.py), so a rule owes shapes and cost, not numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxprune.latency.backends.onnx_graph import Call, Rule, rule
from passes.process.torch_private import OpOverloadPacket, schema_of

aten = torch.ops.aten

# ---- elementwise -----------------------------------------------------------------------------------------------------

# The ATen operators that one ONNX operator computes: its name, its inputs by the names of the arguments, and for each
# attribute an argument with its type.
_ALIKE: tuple[tuple[tuple[OpOverloadPacket, ...], str, str, dict[str, tuple[str, type]]], ...] = (
    ((aten.relu,), "Relu", "self", {}),
    ((aten.sigmoid,), "Sigmoid", "self", {}),
    ((aten.tanh,), "Tanh", "self", {}),
    ((aten.hardswish,), "HardSwish", "self", {}),
    ((aten.mish,), "Mish", "self", {}),
    ((aten.exp,), "Exp", "self", {}),
    ((aten.log,), "Log", "self", {}),
    ((aten.sqrt,), "Sqrt", "self", {}),
    ((aten.abs,), "Abs", "self", {}),
    ((aten.neg,), "Neg", "self", {}),
    ((aten.erf,), "Erf", "self", {}),
    ((aten.sin,), "Sin", "self", {}),
    ((aten.cos,), "Cos", "self", {}),
    ((aten.reciprocal,), "Reciprocal", "self", {}),
    ((aten.bitwise_not, aten.logical_not), "Not", "self", {}),
    ((aten.mul,), "Mul", "self other", {}),
    ((aten.div,), "Div", "self other", {}),
    ((aten.maximum,), "Max", "self other", {}),
    ((aten.minimum,), "Min", "self other", {}),
    ((aten.pow,), "Pow", "self exponent", {}),
    ((aten.where,), "Where", "condition self other", {}),
    ((aten._prelu_kernel,), "PRelu", "self weight", {}),
    ((aten.gelu,), "Gelu", "self", {"approximate": ("approximate", str)}),
    ((aten.leaky_relu,), "LeakyRelu", "self", {"alpha": ("negative_slope", float)}),
    ((aten.elu,), "Elu", "self", {"alpha": ("alpha", float)}),
    ((aten._softmax, aten._safe_softmax), "Softmax", "self", {"axis": ("dim", int)}),
    ((aten._log_softmax,), "LogSoftmax", "self", {"axis": ("dim", int)}),
    ((aten.addmm,), "Gemm", "mat1 mat2 self", {}),
    ((aten.mm, aten.bmm), "MatMul", "self mat2", {}),
)


def _alike(op: str, inputs: str, attributes: dict[str, tuple[str, type]]) -> Rule:
    def one_node(call: Call) -> str:
        given = {name: kind(call.arg(argument)) for name, (argument, kind) in attributes.items()}
        return call.graph.emit(op, *map(call.onnx, inputs.split()), **given)

    return one_node


for _packets, _op, _inputs, _attributes in _ALIKE:
    rule(*_packets)(_alike(_op, _inputs, _attributes))


@rule(aten.add, aten.sub, aten.rsub)
def _add(call: Call) -> str:
    op = "Add" if call.func.overloadpacket in (aten.add, aten.add_) else "Sub"
    first, second = call.onnx("self"), call.onnx("other")
    if call.arg("alpha") != 1:
        second = call.graph.emit("Mul", second, call.graph.scalar(call.arg("alpha"), call.dtype))
    if call.func.overloadpacket is aten.rsub:
        first, second = second, first
    return call.graph.emit(op, first, second)


@rule(aten.rsqrt)
def _rsqrt(call: Call) -> str:
    return call.graph.emit("Reciprocal", call.graph.emit("Sqrt", call.onnx("self")))


@rule(aten.silu)
def _silu(call: Call) -> str:
    value = call.onnx("self")
    return call.graph.emit("Mul", value, call.graph.emit("Sigmoid", value))


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


@rule(aten.baddbmm)
def _baddbmm(call: Call) -> str:
    product = call.graph.emit("MatMul", call.onnx("batch1"), call.onnx("batch2"))
    return call.graph.emit("Add", product, call.onnx("self"))


@rule(aten.embedding)
def _embedding(call: Call) -> str:
    return call.graph.emit("Gather", call.onnx("weight"), call.onnx("indices"), axis=0)
