"""The parameters of a forward and its result: as the graph has them, or as torch.export's trees of both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import fx

from fxprune.errors import ExportError
from fxprune.exporters.source.expressions import Writer
from fxprune.exporters.source.literals import quoted
from passes.process.torch_private import codegen_of, pytree

# None for a leaf, else the keys (None for a tuple or list) and the name and tree of each part.
Tree: TypeAlias = "tuple[list[str] | None, list[tuple[str, Tree]]] | None"


@dataclass(frozen=True)
class Signature:
    """names: the parameters. leaves: placeholder -> the name that holds it. trees: parameter -> what it is unpacked to.

    keyword_only: how many of the names, from the end, go by name. out_spec: the tree of the outputs, None as written.
    """

    names: tuple[str, ...]
    leaves: dict[fx.Node, str]
    trees: dict[str, Tree]
    keyword_only: int = 0
    out_spec: pytree.TreeSpec | None = None

    @staticmethod
    def of(gm: fx.GraphModule) -> Signature:
        """Read it from the graph and its code generator."""
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        info = getattr(codegen_of(gm.graph), "pytree_info", None)
        if info is None:
            names = tuple(str(node.target) for node in placeholders)
            leaves = {node: name.lstrip("*") for node, name in zip(placeholders, names, strict=True)}
            return Signature(names, leaves, {})
        names = tuple(name for name in info.orig_args if name != "self")
        positional, keyword = _halves(info.in_spec, len(names))
        leaves = {}
        rest = iter(placeholders)
        trees = {}
        for name, spec in zip(names, [*positional, *keyword], strict=True):
            trees[name] = _leaves(spec, name, rest, leaves)
        return Signature(names, leaves, trees, len(keyword), info.out_spec)

    def renamed(self, names: Mapping[str, str]) -> Signature:
        """The same with other names for some of its parameters, all of them positional and without defaults."""
        return Signature(
            tuple(names.get(name, name) for name in self.names),
            {node: names.get(name, name) for node, name in self.leaves.items()},
            {names.get(name, name): tree for name, tree in self.trees.items()},
            0,
            self.out_spec,
        )

    def parameters(self, writer: Writer) -> list[str]:
        """The text of each parameter, defaults included."""
        defaults = {name: node.args[0] for node, name in self.leaves.items() if node.args}
        texts = []
        for index, name in enumerate(self.names):
            if self.keyword_only and index == len(self.names) - self.keyword_only:
                texts.append("*")
            node = next((node for node, leaf in self.leaves.items() if leaf == name), None)
            texts.append(f"{name}={writer.argument(defaults[name], node)}" if name in defaults and node else name)
        return texts

    def unpacking(self) -> list[str]:
        """Statements that take structured inputs apart: `h, c = hx`."""
        return [line for name, tree in self.trees.items() for line in _unpack(name, tree)]

    def result(self, output: fx.Node, writer: Writer) -> str:
        """The expression after `return`."""
        value = output.args[0]
        if self.out_spec is None:
            return writer.argument(value, output)
        flat = value if isinstance(value, list | tuple) else [value]
        return _pack(self.out_spec, iter([writer.argument(item, output) for item in flat]))


def _halves(spec: pytree.TreeSpec, count: int) -> tuple[list[pytree.TreeSpec], list[pytree.TreeSpec]]:
    children = _children(spec)
    has_both = len(children) == 2 and children[0].type is tuple and children[1].type is dict
    if has_both and len(_children(children[0])) + len(_children(children[1])) == count:
        return _children(children[0]), _children(children[1])
    return children, []


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    return [spec.child(index) for index in range(spec.num_children)]


def _leaves(spec: pytree.TreeSpec, name: str, rest: Iterator[fx.Node], leaves: dict[fx.Node, str]) -> Tree:
    """Name the leaves below one parameter."""
    if spec.is_leaf():
        leaves[next(rest)] = name
        return None
    if spec.type in (dict, OrderedDict):
        keys = list(spec.context)
    elif spec.type in (tuple, list):
        keys = None
    else:
        raise ExportError(f"forward: the input {name} is a {spec.type.__name__}, which plain source cannot take apart")
    labels = range(spec.num_children) if keys is None else keys
    parts = [(f"{name}_{label}", child) for label, child in zip(labels, _children(spec), strict=True)]
    return keys, [(part, _leaves(child, part, rest, leaves)) for part, child in parts]


def _unpack(name: str, tree: Tree) -> list[str]:
    if tree is None:
        return []
    keys, parts = tree
    if keys is None:
        lines = [f"{', '.join(part for part, _ in parts)}{',' if len(parts) == 1 else ''} = {name}"] if parts else []
    else:
        lines = [f"{part} = {name}[{quoted(key)}]" for (part, _), key in zip(parts, keys, strict=True)]
    return lines + [line for part, subtree in parts for line in _unpack(part, subtree)]


def _pack(spec: pytree.TreeSpec, items: Iterator[str]) -> str:
    if spec.is_leaf():
        return next(items)
    parts = [_pack(child, items) for child in _children(spec)]
    if spec.type is tuple:
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if spec.type is list:
        return f"[{', '.join(parts)}]"
    keys = spec.context if isinstance(spec.context, list | tuple) else None
    if spec.type in (dict, OrderedDict) and keys is not None:
        return "{" + ", ".join(f"{quoted(key)}: {part}" for key, part in zip(keys, parts, strict=True)) + "}"
    names = _mapping_keys(spec)
    if names is not None:
        # A model's own output class (a dict in most ways); a file that needs torch alone returns the dict.
        return "{" + ", ".join(f"{quoted(key)}: {part}" for key, part in zip(names, parts, strict=True)) + "}"
    raise ExportError(f"forward: the output is a {spec.type.__name__}, which plain source cannot build; return tensors")


def _mapping_keys(spec: pytree.TreeSpec) -> list[str] | None:
    context = spec.context
    while isinstance(context, tuple | list) and context and isinstance(context[0], tuple | list):
        context = context[0]
    keys = list(context) if isinstance(context, tuple | list) else []
    return keys if len(keys) == spec.num_children and all(isinstance(key, str) for key in keys) else None
