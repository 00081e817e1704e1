"""A GraphModule run on the meta device, its ATen calls written down as an ONNX graph by the rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.latency.backends import onnx_ops, onnx_shapes  # noqa: F401  (they register their rules)
from fxprune.latency.backends.onnx_graph import Call, Graph, UnsupportedOperator, numpy_dtype_of
from passes.graph.module_copies import copy_with, like
from passes.nested_values import tree_leaves_only
from passes.ops import traits_of
from passes.process.torch_private import OpOverload, TorchDispatchMode
from passes.stream.graph_stream import as_arguments, to_meta
from passes.stream.inference import composite_attention


def record(gm: fx.GraphModule, example_inputs: object, fold: bool = True) -> Graph:
    """The ONNX graph of `gm` in evaluation mode at the shapes of `example_inputs` (only shapes are read).

    fold: leave out batch norm behind a convolution. Runs on the meta device: weights are neither read nor copied.
    Raises UnsupportedOperator, naming operator and node.
    """
    graph = Graph(fold=fold)
    recorder = _Recorder(graph)

    def meta_placeholder(name: str, tensor: Tensor) -> Tensor:
        meta = like(tensor, torch.empty_like(tensor, device="meta"))
        recorder.parameters[id(meta)] = name
        recorder.kept.append(meta)
        return meta

    root = copy_with(gm, meta_placeholder)
    root.eval()
    inputs = to_meta(as_arguments(example_inputs, gm))
    for index, tensor in enumerate(tree_leaves_only(Tensor, inputs)):
        graph.inputs[f"input_{index}"] = (tuple(tensor.shape), numpy_dtype_of(tensor.dtype))
        recorder.bind(tensor, f"input_{index}")
    with torch.no_grad(), composite_attention(), recorder:
        result = _ScopedInterpreter(root, gm.graph, graph).run(*inputs, enable_io_processing=False)
    leaves = tree_leaves_only(Tensor, result)
    graph.outputs = list(dict.fromkeys(recorder.value(t) for t in leaves))
    return graph


class _ScopedInterpreter(fx.Interpreter):
    """Runs the graph and sets the fx node to which the recorder counts what is emitted."""

    def __init__(self, root: torch.nn.Module, graph: fx.Graph, onnx: Graph) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self._onnx = onnx

    def run_node(self, node: fx.Node) -> object:
        self._onnx.scope = node.name
        return super().run_node(node)


class _Recorder(TorchDispatchMode):
    """Sees each ATen call and writes its ONNX nodes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._names: dict[int, str] = {}
        self.parameters: dict[int, str] = {}
        self.kept: list[Tensor] = []  # an id is only good while its tensor lives

    def bind(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self.kept.append(tensor)

    def value(self, tensor: Tensor) -> str:
        """The ONNX name of a tensor; one never seen before is a parameter or buffer."""
        name = self._names.get(id(tensor))
        if name is None:
            name = self.graph.weight(tuple(tensor.shape), tensor.dtype, self.parameters.get(id(tensor), ""))
            self.bind(tensor, name)
        return name

    def __torch_dispatch__(self, func: OpOverload, types: object, args: Any = (), kwargs: Any = None) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not tree_leaves_only(Tensor, out):
            return out
        rule = traits_of(func).onnx
        if rule is None:
            raise UnsupportedOperator(f"{func} (node {self.graph.scope}) has no ONNX rule here")
        names = rule(Call(self.graph, self.value, func, args, kwargs, out))
        outs = (out,) if isinstance(out, Tensor) else tuple(out)
        for tensor, name in zip(outs, (names,) if isinstance(names, str) else names, strict=False):
            if isinstance(tensor, Tensor) and name:
                self.bind(tensor, name)
        return out
