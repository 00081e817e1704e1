"""Graphs inside a graph, written in place: regions of torch.export (no gradients, no autocast), nested GraphModules."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.errors import ExportError
from passes.process.torch_private import buffers_of, codegen_of, set_codegen, transient_of

_GRADIENTS, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def flattened(gm: fx.GraphModule) -> fx.GraphModule:
    """The same network in one graph; `gm` itself where it is one already. The tensors are shared.

    A region without gradients becomes its nodes and a `detach` of what leaves it. Raises ExportError for a region under
    autocast, whose dtypes follow rules that plain nodes do not.
    """
    if not any(_inner(gm, node) for node in gm.graph.nodes):
        return gm
    graph = fx.Graph()
    output = _copied(gm, "", graph, {})
    graph.output(output)
    set_codegen(graph, codegen_of(gm.graph))
    flat = fx.GraphModule(gm, graph, type(gm).__name__)
    flat.meta.update(gm.meta)
    for path, module in gm.named_modules():
        for name in transient_of(module):
            owner = dict(flat.named_modules()).get(path)
            if owner is not None and name in buffers_of(owner):
                transient_of(owner).add(name)
    return flattened(flat)


def _inner(gm: fx.GraphModule, node: fx.Node) -> tuple[str, Sequence[object]] | None:
    """The path of the graph that a node calls and its arguments; None for a node that calls none."""
    if node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), fx.GraphModule) and node.users:
        return str(node.target), node.args
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name == _GRADIENTS:
        return str(node.args[1].target), node.args[2:]  # type: ignore[union-attr]
    if name == _AUTOCAST:
        if node.args[2]:
            raise ExportError(f"{node.name}: a region under autocast has no plain source; export with autocast off")
        return str(node.args[4].target), node.args[5:]  # type: ignore[union-attr]
    return None


def _copied(gm: fx.GraphModule, prefix: str, graph: fx.Graph, known: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of `gm`, which sits at `prefix`, to the end of `graph`; returns its result in the new nodes."""

    def new(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: known[node])

    for node in gm.graph.nodes:
        if node.op == "output":
            return new(node.args[0])
        if node in known:  # a placeholder of a nested graph, which stands for an argument
            continue
        inner = _inner(gm, node)
        if inner is not None:
            path, args = inner
            known[node] = _inlined(gm, f"{prefix}{path}", path, new(args), graph)
            if getattr(node.target, "__name__", "") == _GRADIENTS and node.args[0] is False:
                known[node] = fx.node.map_arg(known[node], lambda value: graph.call_function(torch.detach, (value,)))
        elif node.target is operator.getitem and not isinstance(known.get(node.args[0]), fx.Node | None):
            known[node] = known[node.args[0]][node.args[1]]
        elif node.op == "get_attr" and isinstance(_attribute(gm, str(node.target)), fx.GraphModule):
            continue  # only the region that calls it reads it
        else:
            known[node] = graph.node_copy(node, lambda source: known[source])
            if node.op in ("call_module", "get_attr"):
                known[node].target = f"{prefix}{node.target}"
    raise ExportError(f"{prefix or 'the graph'} returns nothing")


def _inlined(gm: fx.GraphModule, place: str, path: str, args: Iterable[object], graph: fx.Graph) -> object:
    inner = gm.get_submodule(path)
    assert isinstance(inner, fx.GraphModule), "only the paths of graphs come here"
    if getattr(codegen_of(inner.graph), "pytree_info", None) is not None:
        raise ExportError(f"{place}: a nested graph with structured inputs has no plain source")
    placeholders = inner.graph.find_nodes(op="placeholder")
    return _copied(inner, f"{place}.", graph, dict(zip(placeholders, args, strict=True)))


def _attribute(gm: fx.GraphModule, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(gm.get_submodule(owner), name)
