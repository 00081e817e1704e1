"""A graph as plain data, for pickle: its nodes one by one. torch stores the code and traces that again on loading.

What is traced again may come out otherwise, or not at all: a call that looks at the type of its operands when it runs,
a setting that is read while it runs.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from passes.process.torch_private import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    codegen_of,
    overload_name,
    qualified_name,
    qualified_operator,
    schema_of,
    set_codegen,
    tracer_class,
)


@dataclass(frozen=True)
class _Place:
    """Stands for the node of this number among the arguments of a later one."""

    number: int


@dataclass(frozen=True)
class _Named:
    """A function of torch or Python by the way to it: pickle does not find all of torch's by itself."""

    module: str
    path: str


@dataclass(frozen=True)
class _Operator:
    """An operator of the dispatcher; without an overload the packet of all of them."""

    namespace: str
    name: str
    overload: str | None


def stored(graph: fx.Graph) -> dict[str, Any]:
    """The nodes, in order, and what generates code of them. Of a node's notes plain ones stay: its source lines."""
    numbers: dict[fx.Node, Any] = {node: _Place(number) for number, node in enumerate(graph.nodes)}
    nodes = []
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), numbers.__getitem__)
        target = node.target if isinstance(node.target, str) else _stored_target(node.target)
        notes = {key: value for key, value in node.meta.items() if isinstance(value, (str, int, float, bool))}
        nodes.append((node.op, node.name, target, args, kwargs, node.type, notes))
    return {"nodes": nodes, "codegen": codegen_of(graph), "tracer": _plain_tracer(graph)}


def rebuilt(data: dict[str, Any]) -> fx.Graph:
    """The graph that `stored` wrote down."""
    graph = fx.Graph(tracer_cls=data["tracer"])
    made: list[fx.Node] = []

    def node_at(value: object) -> Any:
        return made[value.number] if isinstance(value, _Place) else value

    for op, name, target, args, kwargs, kind, notes in data["nodes"]:
        args, kwargs = fx.node.map_aggregate((args, kwargs), node_at)
        made.append(graph.create_node(op, _target(target), args, kwargs, name=name, type_expr=kind))
        made[-1].meta.update(notes)
    set_codegen(graph, data["codegen"])
    return graph


def _plain_tracer(graph: fx.Graph) -> object:
    kind = tracer_class(graph)
    return kind if kind is not None and "<locals>" not in kind.__qualname__ else None


def _stored_target(target: Any) -> object:
    if isinstance(target, OpOverload):
        return _Operator(target.namespace, schema_of(target).name.split("::")[1], overload_name(target))
    if isinstance(target, OpOverloadPacket):
        namespace, name = qualified_operator(target).split("::")
        return _Operator(namespace, name, None)
    if isinstance(target, HigherOrderOperator):
        return _Operator("higher_order", target.name(), None)
    if not (hasattr(target, "__name__") and hasattr(target, "__module__")):
        return target
    try:
        module, _, path = qualified_name(target).rpartition(".")
        named = _Named(module, path)
        return named if _target(named) is target else target
    except Exception:  # a function that torch cannot name: pickle names it, or says why it cannot
        return target


def _target(target: object) -> Any:
    if isinstance(target, _Operator):
        packet = getattr(getattr(torch.ops, target.namespace), target.name)
        return packet if target.overload is None else getattr(packet, target.overload)
    if isinstance(target, _Named):
        return getattr(_imported(target.module), target.path)
    return target


def _imported(name: str) -> object:
    """A module, or a class or namespace in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        above, _, last = name.rpartition(".")
        if not above:
            raise
        return getattr(_imported(above), last)
