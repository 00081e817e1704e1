"""Graph modules whose Python code is generated when it is first wanted.

A pipeline makes a graph module a pass and runs the last one. torch writes and compiles the code of each as soon as it
is made, which on networks of many small layers takes as long as all else that a pass does; its own lazy variant shows
``forward(*args, **kwargs)`` to whoever asks for the signature.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import fx, nn
from torch.fx.graph import CodeGen
from torch.fx.graph_module import _copy_attr


def graph_module(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph module that takes over what `root` holds; its code is generated when it is run, shown or asked for.

    ``recompile()`` generates it at once, as ever.
    """
    made: fx.GraphModule = fx.GraphModule.__new__(fx.GraphModule)
    kind: Any = type(made)  # a class of its own, where fx puts the code
    kind.recompile = lambda self: None
    try:
        empty = fx.Graph(tracer_cls=graph._tracer_cls, tracer_extras=graph._tracer_extras)
        made.__init__(nn.Module(), empty, name)  # type: ignore[misc]
        made.__dict__.update({name: root.__dict__[name] for name in _HELD})
        made.graph = graph
    finally:
        del kind.recompile
    for node in graph.find_nodes(op="get_attr"):
        if not hasattr(made, str(node.target).partition(".")[0]):
            _copy_attr(root, made, str(node.target))  # a plain attribute of the root
    if type(graph._codegen) is not CodeGen:
        made.recompile()  # others leave more behind than code
        return made
    for attribute in ("forward", "_code", "_lineno_map", "_prologue_start"):
        setattr(kind, attribute, _Wanted(attribute, weakref.ref(made)))
    kind.__reduce__ = _reduced
    return made


_HELD = ("training", "_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


def _reduced(module: fx.GraphModule) -> Any:
    """What pickle asks for: fx looks for the code among the attributes, where it must be by then."""
    if "_code" not in vars(module):
        module.recompile()
    return fx.GraphModule.__reduce__(module)


class _Wanted:
    """Stands in the class for what code generation sets, and has it done."""

    def __init__(self, name: str, module: weakref.ref[fx.GraphModule]) -> None:
        self.name, self.module = name, module

    def __get__(self, instance: fx.GraphModule | None, owner: type) -> Any:
        module = self.module() if instance is None else instance
        if module is None:
            raise AttributeError(self.name)
        module.recompile()
        return getattr(owner if instance is None else instance, self.name)
