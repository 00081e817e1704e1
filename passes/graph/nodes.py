"""Nodes of graphs: which are inputs, which line made them; and new ones, made without torch's search of arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import fx
from torch.fx.node import Argument


def input_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders that take one value each; what ``*args`` and ``**kwargs`` would gather is left empty."""
    return [n for n in graph.nodes if n.op == "placeholder" and not str(n.target).startswith("*")]


def source_of(node: fx.Node) -> str:
    """``file.py:line`` of the user's code that made `node`; empty where the graph does not say."""
    return _innermost_line(node.stack_trace or "")


@lru_cache(maxsize=4096)
def _innermost_line(trace: str) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+)', trace)
    if not found:
        return ""
    path, line = found[-1]
    return f"{path.rsplit('/', 1)[-1]}:{line}"


def call(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, object]) -> Any:
    """What the function or the method of a node gives."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target), "a function"
    return node.target(*args, **kwargs)


def give_arguments(node: fx.Node, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> None:
    """Set the arguments of a node that was made without any; a graph's table of nodes does not use them."""
    if args:
        object.__setattr__(node, "args", args)
    if kwargs:
        object.__setattr__(node, "kwargs", kwargs)


def copied(graph: fx.Graph, node: fx.Node, known: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """``graph.node_copy(node, known)``."""
    new = graph.create_node(node.op, node.target, name=node.name, type_expr=node.type)
    give_arguments(new, *fx.map_arg((node.args, node.kwargs), known))
    new.meta.update(node.meta)
    return new
