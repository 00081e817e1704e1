"""A GraphModule that the user has made: taken node by node, only its attention leaves opened."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from passes.errors import CaptureError
from passes.frontend.lower_attention import is_lowered, lowered
from passes.frontend.tracer import Tracer
from passes.graph.annotations import KEY, Facts, specialised_in
from passes.graph.lazy_codegen import graph_module
from passes.graph.nodes import call
from passes.graph.shared_weights import attributes_restored, doubled, sharing_weights
from passes.process.torch_patches import has_hooks
from passes.process.torch_private import TreeCodeGen, codegen_of, pytree, spelled_target


def taken_as_it_is(model: fx.GraphModule, inputs: dict[str, object] | None) -> fx.GraphModule:
    """The same nodes, names and notes over modules of its own that share their weights with those of `model`.

    Calls of nn.MultiheadAttention and of the transformers become the nodes that they stand for.
    """
    if has_hooks(model):
        raise CaptureError(
            f"{type(model).__name__} has hooks of its own, which are no nodes of its graph; remove them, or capture a "
            "module that holds it as a part"
        )
    if inputs is not None and isinstance(codegen_of(model.graph), TreeCodeGen) and not _are_its_inputs(model, inputs):
        count = len(model.graph.find_nodes(op="placeholder"))
        raise CaptureError(
            f"{type(model).__name__} takes nested arguments, and its graph their {count} parts, one by one (make_fx "
            "and concrete_args make such graphs), which cannot be told apart by name; make a graph of a function whose "
            "arguments are these tensors, or hand in the module that it was made of"
        )
    gm = graph_module(sharing_weights(model), copy.deepcopy(model.graph), type(model).__name__)
    if _attention_leaves(gm):
        with attributes_restored(gm), lowered():
            graph = _Replay(gm, inputs).trace(gm)
            gm = graph_module(doubled(gm, graph), graph, type(model).__name__)
    gm.meta.update(model.meta)
    gm.meta[KEY] = Facts(specialised=specialised_in(model))
    gm.meta["frontend"] = {"which": "given", "why": "the model is a GraphModule already", "specialised": ()}
    return gm


def _are_its_inputs(model: fx.GraphModule, arguments: dict[str, object]) -> bool:
    """Whether the inputs of the graph are these arguments, each whole, as in a copy of what torch.export gives."""
    names = {str(node.target) for node in model.graph.find_nodes(op="placeholder")}
    return names == arguments.keys() and all(map(pytree.tree_is_leaf, arguments.values()))


def _attention_leaves(gm: fx.GraphModule) -> list[str]:
    with lowered():
        calls = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
        return [target for target in calls if is_lowered(gm.get_submodule(target))]


class _Replay(Tracer):
    """Runs the nodes of a graph in their order: copies each, and traces through the attention leaves."""

    traced_func_name = "_fxprune_replayed"

    def __init__(self, gm: fx.GraphModule, inputs: dict[str, object] | None) -> None:
        super().__init__(inputs)
        self._given = gm
        self._inside: fx.Node | None = None

    def trace(
        self, root: nn.Module | Callable[..., object], concrete_args: dict[str, object] | None = None
    ) -> fx.Graph:
        kind: Any = type(self._given)

        @functools.wraps(kind.forward)
        def replayed(_: nn.Module, *args: fx.Proxy) -> object:
            return self._replay(args)

        kind._fxprune_replayed = replayed
        try:
            return super().trace(root, concrete_args)
        finally:
            del kind._fxprune_replayed

    def create_node(
        self, kind: str, target: Any, args: object, kwargs: object, name: Any = None, type_expr: object = None
    ) -> Any:
        if kind not in ("placeholder", "output"):  # a node of the given graph must not lose its name to one of ours
            wanted = name or spelled_target(self.graph, target)
            before = self._inside.name if self._inside is not None else "opened"
            name = wanted if wanted.startswith(before + "_") else f"{before}_{wanted}"
        return super().create_node(kind, target, args, kwargs, name, type_expr)

    def _present(self, arg: object) -> object:
        return arg

    def _replay(self, inputs: tuple[fx.Proxy, ...]) -> object:
        values: dict[fx.Node, Any] = {}
        for placeholder, proxy in zip(self._given.graph.find_nodes(op="placeholder"), inputs, strict=True):
            proxy.node.meta.update(placeholder.meta)
            values[placeholder] = proxy
        for node in self._given.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            if node.op != "placeholder":
                values[node] = self._value(node, values)
        return None

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> object:
        if node.op == "call_module" and is_lowered(self._given.get_submodule(str(node.target))):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            self._inside = node
            try:
                return self._given.get_submodule(str(node.target))(*args, **kwargs)
            finally:
                self._inside = None
        if any(isinstance(values[used], tuple) for used in node.all_input_nodes):  # output and weights of an attention
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            return call(node, args, kwargs)
        return self.proxy(self.graph.node_copy(node, lambda used: values[used].node))
