"""An ONNX graph of a GraphModule, made quickly and for timing alone: its weights are random.

`torch.onnx.export` takes seconds; a latency table wants dozens of networks. Here the graph runs once on the meta device
under a dispatch mode, and each ATen operator becomes the ONNX operators that the real exporter writes for it. The names
of values lead back to the fx nodes that compute them, so that a runtime's profile can be read by node.
Batch norm behind a convolution is left out: exporters and runtimes fold it into the weights.

The rules of torch's operators stand in `onnx_ops.py` and `onnx_shapes.py`; a user's is the trait `onnx` of a rule of
his own. An operator without one raises UnsupportedOperator: the caller then exports properly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.ops.table import packet_traits, states, traits_of
from passes.process.torch_private import OpOverload, OpOverloadPacket, schema_of

OPSET = 20  # the first with Gelu; torch.onnx.export of torch 2.13 writes this one too


class UnsupportedOperator(Exception):
    """An ATen operator that has no rule here."""


@dataclass(frozen=True)
class Node:
    """One ONNX node: operator, names of its inputs and outputs, attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """An ONNX graph under construction.

    weights: name -> shape and dtype (their values are random); constants: name -> array (shapes, axes, scalars).
    Values are called "@7@", a mark that survives in the names that a runtime derives; owners[7] is the fx node.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    weights: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    scope: str = ""
    fold: bool = True

    def owner(self, name: str) -> str | None:
        """The fx node that a name in a runtime's profile goes back to; None for what the runtime added by itself."""
        mark = re.search(r"@(\d+)@", name)
        return self.owners[int(mark[1])] if mark else None

    def name(self) -> str:
        """A fresh value name, owned by the fx node in hand."""
        self.owners.append(self.scope)
        return f"@{len(self.owners) - 1}@"

    def emit(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Append a node; return the name of its first output."""
        names = tuple(self.name() for _ in range(outputs))
        self.nodes.append(Node(op, inputs, names, {k: v for k, v in attributes.items() if v is not None}))
        return names[0]

    def emit_many(self, op: str, *inputs: str, outputs: int, **attributes: object) -> tuple[str, ...]:
        """`emit` for a node with several outputs."""
        self.emit(op, *inputs, outputs=outputs, **attributes)
        return self.nodes[-1].outputs

    def ints(self, values: Sequence[int]) -> str:
        """An int64 constant."""
        return self.array(np.asarray(values, dtype=np.int64))

    def scalar(self, value: float, dtype: torch.dtype = torch.float32) -> str:
        """A scalar constant of the dtype of the tensor that it is combined with."""
        return self.array(np.asarray(value, dtype=numpy_dtype_of(dtype)))

    def array(self, array: np.ndarray) -> str:
        """A constant; equal ones are stored once."""
        name = f"constant_{array.dtype}_{array.shape}_{hash(array.tobytes())}"
        self.constants[name] = array
        return name

    def weight(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, name: str = "") -> str:
        """A random weight; `name` is that of the network's tensor whose place it takes."""
        name = f"weight_{name or len(self.weights)}"
        self.weights[name] = tuple(shape), numpy_dtype_of(dtype)
        return name


@dataclass(frozen=True)
class Call:
    """One ATen call as a rule sees it: the arguments by name, ONNX names for tensors, the graph to write to."""

    graph: Graph
    value: Callable[[Tensor], str]
    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, name: str) -> Any:
        """The argument called `name` in the operator's schema, or its default."""
        for index, formal in enumerate(schema_of(self.func).arguments):
            if formal.name == name:
                if index < len(self.args):
                    return self.args[index]
                return self.kwargs.get(name, formal.default_value)
        raise KeyError(f"{self.func} has no argument {name!r}")

    def onnx(self, name: str) -> str:
        """The ONNX value of a tensor or number argument; "" (ONNX: not given) for None."""
        value = self.arg(name)
        if value is None:
            return ""
        if isinstance(value, Tensor):
            return self.value(value)
        return self.graph.scalar(value, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        out = self.out if isinstance(self.out, Tensor) else self.out[0]
        return out.dtype

    @property
    def numpy_dtype(self) -> np.dtype:
        """Of the (first) output."""
        return numpy_dtype_of(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) output."""
        out = self.out if isinstance(self.out, Tensor) else self.out[0]
        return tuple(out.shape)


Rule = Callable[[Call], str | tuple[str, ...]]


def rule(*packets: OpOverloadPacket) -> Callable[[Rule], Rule]:
    """State how operators and their in-place variants are given as ONNX, where a user has not."""

    def register(function: Rule) -> Rule:
        for packet in packets:
            if packet_traits(packet).onnx is None:
                states(packet, onnx=function)
            for overload in (getattr(packet, name) for name in packet.overloads()):
                if traits_of(overload).onnx is None:  # its axes have a rule of their own
                    states(overload, onnx=function)
        return function

    return register


def unsupported(call: Call, why: str) -> str:
    """Give the call up, saying why."""
    raise UnsupportedOperator(f"{call.func} (node {call.graph.scope}) {why}")


@cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def _weight(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random values of a scale that keeps activations near one (no overflow, no denormals); zeros for integers."""
    if dtype.kind != "f":
        return np.zeros(shape, dtype=dtype)
    fan_in = int(np.prod(shape[1:], dtype=np.int64)) if len(shape) > 1 else 16
    values = np.resize(_pool(), int(np.prod(shape, dtype=np.int64)))
    return (values * np.float32((2.0 / max(fan_in, 1)) ** 0.5)).astype(dtype, copy=False).reshape(shape)


def to_onnx(graph: Graph, tensors: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Serialise with random weights, or with those of `tensors` by the names that the network gives them."""
    import onnx
    from onnx import helper, numpy_helper

    given = {f"weight_{name}": array for name, array in (tensors or {}).items()}
    initializers = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    for name, (shape, dtype) in graph.weights.items():
        array = given[name] if name in given else _weight(shape, dtype)
        initializers.append(numpy_helper.from_array(array, name))
    nodes = [helper.make_node(n.op, n.inputs, n.outputs, f"node_{n.outputs[0]}", **n.attributes) for n in graph.nodes]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
        for name, (shape, dtype) in graph.inputs.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in graph.outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "timed", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=min(10, onnx.IR_VERSION),
    )
    return model.SerializeToString()


def numpy_dtype_of(dtype: torch.dtype) -> np.dtype:
    try:
        return np.dtype(str(dtype).removeprefix("torch."))  # a meta tensor has no .numpy() to ask
    except TypeError as error:
        raise UnsupportedOperator(f"numpy has no {dtype}") from error
