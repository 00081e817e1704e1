"""Nodes of graphs in less time: torch looks through the arguments of each new one for symbolic numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def give_arguments(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Set the arguments of a node that was made without any; no place in the graph's table of nodes hangs on them."""
    if args:
        object.__setattr__(node, "args", args)
    if kwargs:
        object.__setattr__(node, "kwargs", kwargs)


def copied(graph: fx.Graph, node: fx.Node, known: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """``graph.node_copy(node, known)``."""
    new = graph.create_node(node.op, node.target, name=node.name, type_expr=node.type)
    give_arguments(new, *fx.map_arg((node.args, node.kwargs), known))  # type: ignore[misc]
    new.meta.update(node.meta)
    return new
