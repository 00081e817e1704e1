"""Graph modules whose Python code is generated when it is first wanted, and right whatever their modules are called.

A pipeline makes a graph module a pass and runs the last one. torch writes and compiles the code of each as soon as it
is made, which on networks of many small layers takes as long as all else that a pass does; its own lazy variant shows
``forward(*args, **kwargs)`` to whoever asks for the signature.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from passes.graph.stored_graph import rebuilt, stored
from passes.process.torch_patches import any_names
from passes.process.torch_private import (
    CodeGen,
    TreeCodeGen,
    codegen_of,
    copy_attribute,
    set_codegen,
    tracer_class,
    tracer_extras,
)


class Captured(fx.GraphModule):
    """A GraphModule that pickle stores node by node, with its notes, and loads without tracing anything again."""

    def __reduce__(self) -> Any:
        held = {name: value for name, value in self.__dict__.items() if name not in _MADE}
        return _restored, (type(self).__name__, held, stored(self.graph))


def graph_module(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph module that takes over what `root` holds; its code is generated when it is run, shown or asked for.

    ``recompile()`` generates it at once, as ever.
    """
    made: fx.GraphModule = Captured.__new__(Captured)
    kind: Any = type(made)  # a class of its own, where fx puts the code
    kind.recompile = lambda self: None
    try:
        empty = fx.Graph(tracer_cls=tracer_class(graph), tracer_extras=tracer_extras(graph))
        made.__init__(nn.Module(), empty, name)  # type: ignore[misc]
        made.__dict__.update({name: root.__dict__[name] for name in _HELD})
        set_codegen(graph, _for_any_name(codegen_of(graph)))
        made.graph = graph
    finally:
        del kind.recompile
    for node in graph.find_nodes(op="get_attr"):
        if not hasattr(made, str(node.target).partition(".")[0]):
            copy_attribute(root, made, str(node.target))  # a plain attribute of the root
    if type(codegen_of(graph)) is not AnyName:
        made.recompile()  # others leave more behind than code
        return made
    for attribute in ("forward", "_code", "_lineno_map", "_prologue_start"):
        setattr(kind, attribute, _Wanted(attribute, weakref.ref(made)))
    return made


_HELD = ("training", "_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
_MADE = frozenset({"_graph", "_code", "_lineno_map", "_prologue_start"})


def _restored(name: str, held: dict[str, object], graph: dict[str, object]) -> fx.GraphModule:
    root = nn.Module()
    root.__dict__.update(held)
    made = graph_module(root, rebuilt(graph), name)
    made.__dict__.update({key: value for key, value in held.items() if key not in _MADE})
    return made


class AnyName(CodeGen):
    """Generates code for modules of any name: ``self.in`` is no Python, and ``self.ﬁ`` would read ``self.fi``."""

    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> Any:
        with any_names(), _readable(nodes, root_module):
            return super()._gen_python_code(nodes, root_module, *args, **kwargs)


class _AnyNameOfTrees(TreeCodeGen):
    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> Any:
        with any_names(), _readable(nodes, root_module):
            return super()._gen_python_code(nodes, root_module, *args, **kwargs)


@contextmanager
def _readable(nodes: Iterable[fx.Node], root_module: str) -> Iterator[None]:
    """Inside, no node is called as the module itself is (one of a layer ``self``), or as nothing in Python can be."""
    taken = {node.name for node in nodes}
    renamed: list[tuple[fx.Node, str]] = []
    for node in nodes:
        if node.op != "placeholder" and (node.name == root_module or not node.name.isidentifier()):
            renamed.append((node, node.name))
            node.name = next(name for n in itertools.count() if (name := f"value_{n}") not in taken)
            taken.add(node.name)
    try:
        yield
    finally:
        for node, name in renamed:
            node.name = name


def _for_any_name(codegen: object) -> Any:
    kinds = {CodeGen: AnyName, TreeCodeGen: _AnyNameOfTrees}
    if type(codegen) not in kinds:
        return codegen
    made = copy.copy(codegen)
    made.__class__ = kinds[type(codegen)]
    return made


class _Wanted:
    """Stands in the class for what code generation sets, and has it done."""

    def __init__(self, name: str, module: weakref.ref[fx.GraphModule]) -> None:
        self.name, self.module = name, module

    def __get__(self, instance: fx.GraphModule | None, owner: type) -> object:
        module = self.module() if instance is None else instance
        if module is None:
            raise AttributeError(self.name)
        module.recompile()  # which puts `forward` into the class, and the others into the module
        known = inspect.getattr_static(owner, self.name) if instance is None else self
        return getattr(module, self.name) if known is self else known
