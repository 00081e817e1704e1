"""A graph as the lines of a `forward`: few names, used again as a person would, and small things written in place."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Iterable, Iterator

import torch
from torch import fx

from fxprune.errors import ExportError
from fxprune.exporters.source.containers import WIDTH, Container
from fxprune.exporters.source.expressions import Expression, Writer
from fxprune.exporters.source.literals import Imports
from fxprune.exporters.source.signature import Signature

_POOL = ("x", "y", "z", "u", "v", "w", "s", "t", "p", "q", "r", "a", "b", "c", "d")
# Names of the file itself, and those that ruff calls ambiguous.
_NEEDED = frozenset({"self", "torch", "nn", "F", "math", "operator"})
_AMBIGUOUS = frozenset({"l", "O", "I"})
_TAKEN = _NEEDED | _AMBIGUOUS | {"Path", "sha256", "Container", "load"}
_SIZE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "stride"})
_SIZE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})
_ARITHMETIC = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod})
# Guards of an exported graph: they pin device and dtype, and a source file is to follow `.to(...)`.
_GUARDS = ("_assert_tensor_metadata", "_guards_fn")


def forward_lines(gm: fx.GraphModule, root: Container, imports: Imports, indent: str) -> list[str]:
    """The whole method, `def forward` first; ExportError names the node that has no source."""
    for _ in _Forward(gm, root, imports).lines(indent):
        pass  # gathers the imports, whose names no variable may take
    return list(_Forward(gm, root, imports).lines(indent))


class _Forward:
    """The state of the writing: which name holds which node."""

    def __init__(self, gm: fx.GraphModule, root: Container, imports: Imports) -> None:
        self.nodes = [node for node in _needed(gm) if node.op != "placeholder"]
        self.place = {node: index for index, node in enumerate(gm.graph.nodes)}
        self.inlined = self._inline()
        self.last = self._last_uses()
        self.written: dict[fx.Node, Expression] = {}
        self.holder: dict[str, fx.Node] = {}
        self.signature = Signature.of(gm)
        self.inputs = frozenset(self.signature.names) | frozenset(self.signature.leaves.values())
        self.writer = Writer(gm, root, imports, self.written.__getitem__)
        self.taken = _TAKEN | set(imports.names) | imports.modules
        hidden = sorted(self.inputs & (_NEEDED | set(imports.names) | imports.modules))
        unusable = [name for name in self.inputs if name == "self" or keyword.iskeyword(name)]
        unusable += [name for name in self.signature.names if name.startswith("*") and name.lstrip("*") in hidden]
        if unusable:
            raise ExportError(f"forward: no plain source has an input named {sorted(unusable)[0]}; rename it")
        self.hidden = {name: self._unused(f"{name}_input") for name in hidden}
        self.inputs |= frozenset(self.hidden.values())

    def lines(self, indent: str) -> Iterator[str]:
        method, comment = "forward", "  # noqa: E741" if self.inputs & _AMBIGUOUS else ""
        parameters = ["self", *self.signature.parameters(self.writer)]
        if self.hidden:
            # An input called `nn` hides what the body needs: its value goes on to a method that calls it otherwise.
            yield f"{indent}def forward({', '.join(parameters)}):{comment}"
            yield f"{indent}    return self._forward({', '.join(self.signature.names)})"
            yield ""
            self.signature, method, comment = self.signature.renamed(self.hidden), "_forward", ""
            parameters = ["self", *self.signature.names]
        yield f"{indent}def {method}({', '.join(parameters)}):{comment}"
        body = f"{indent}    "
        for line in self.signature.unpacking():
            yield body + line
        for node, name in self.signature.leaves.items():
            self.written[node] = Expression(name)
            self.holder[name] = node
        scope = ""
        for node in self.nodes:
            if node.op == "output":
                yield f"{body}return {self.signature.result(node, self.writer)}"
                return
            expression = self.writer.write(node)
            if node in self.inlined:
                self.written[node] = expression
                continue
            found = _scope(node)
            if found not in (None, scope):
                scope = found or ""
                yield f"{body}# {scope}"
            yield from self._statement(node, expression, body)

    def _unused(self, name: str) -> str:
        return next(
            found
            for found in (name, *(f"{name}_{number}" for number in range(1, len(self.inputs) + 2)))
            if found not in self.inputs | self.taken
        )

    def _statement(self, node: fx.Node, expression: Expression, indent: str) -> list[str]:
        left = ""
        if node.users and node.target is not operator.setitem:
            name = self._name(node)
            self.written[node], self.holder[name] = Expression(name), node
            left = f"{name} = "
        flat = f"{indent}{left}{expression}"
        if len(flat) <= WIDTH or not expression.arguments:
            return [flat]
        return [
            f"{indent}{left}{expression.head}",
            *(f"{indent}    {argument}," for argument in expression.arguments),
            f"{indent}{expression.tail}",
        ]

    def _name(self, node: fx.Node) -> str:
        if is_size(node) or _is_tuple(node):
            return self._own_name(node)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_tuple(node.args[0]):
            return self._own_name(node)
        free = [name for name in self._pool() if name not in self.holder or self._is_dead(self.holder[name], node)]
        dying = {str(self.written[source]) for source in self._sources(node) if self._is_dead(source, node)}
        return next((name for name in free if name in dying), free[0])

    def _pool(self) -> list[str]:
        names = [*_POOL, *(f"x{number}" for number in range(1, len(self.holder) + 2))]
        return [name for name in names if name not in self.taken and (name == "x" or name not in self.inputs)]

    def _own_name(self, node: fx.Node) -> str:
        """A name that says what the value is: `shape`, `chunk`, and `chunk_0` for an item of it."""
        if node.target is getattr:
            base = str(node.args[1])
        elif node.target is operator.getitem and isinstance(node.args[1], int):
            holder = str(self.written[node.args[0]]).rpartition(".")[2]  # type: ignore[index]
            base = f"{holder}_{node.args[1]}"
        elif node.target is torch.ops.aten.sym_size.int:
            base = "size"
        elif node.op == "call_method":
            base = str(node.target)
        elif node.op == "call_module":
            base = str(node.target).rpartition(".")[2]
        else:
            base = node.name
        base = base if base.isidentifier() and not keyword.iskeyword(base) else node.name
        blocked = self.taken | self.inputs | set(_POOL)
        candidates = [base, *(f"{base}_{number}" for number in range(1, len(self.place) + 2)), node.name]
        return next(
            name
            for name in candidates
            if name not in blocked and (name not in self.holder or self._is_dead(self.holder[name], node))
        )

    def _is_dead(self, source: fx.Node, at: fx.Node) -> bool:
        return self.last.get(source, -1) <= self.place[at]

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The nodes whose names the statement of `node` reads, through what is written in place."""
        for source in node.all_input_nodes:
            if source in self.inlined:
                yield from self._sources(source)
            else:
                yield source

    def _inline(self) -> set[fx.Node]:
        """Nodes written where they are used: attributes always, small things where nothing happens in between."""
        found: set[fx.Node] = set()
        following: list[fx.Node] = []  # the nodes after the one at hand, the next one last
        for node in reversed(self.nodes):
            if node.op == "get_attr" or (_may_be_inlined(node) and self._adjoins(node, following, found)):
                found.add(node)
            following.append(node)
        return found

    def _adjoins(self, node: fx.Node, following: list[fx.Node], found: set[fx.Node]) -> bool:
        (user,) = node.users
        for later in reversed(following):
            if later is user:
                return True
            if later not in found:
                return False
        return False

    def _last_uses(self) -> dict[fx.Node, int]:
        """The position of the last statement that reads each node."""
        last: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            at = last.get(node, self.place[node]) if node in self.inlined else self.place[node]
            for source in node.all_input_nodes:
                last[source] = max(last.get(source, -1), at)
        return last


def is_size(node: object) -> bool:
    """Whether a node is a size, a dtype or arithmetic on such: a number beside the tensors."""
    if not isinstance(node, fx.Node):
        return isinstance(node, int | float)
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    if node.target is operator.getitem:
        return is_size(node.args[0])
    if node.target is torch.ops.aten.sym_size.int:
        return True
    return node.target in _ARITHMETIC and all(is_size(value) for value in node.args)


def _is_tuple(node: fx.Node) -> bool:
    """Whether a node's value is only ever taken apart by constant positions: several tensors, no tensor."""
    users = list(node.users)
    if node.op in ("placeholder", "get_attr") or is_size(node) or not users:
        return False
    return all(user.target is operator.getitem and type(user.args[1]) is int and user.args[0] is node for user in users)


def _may_be_inlined(node: fx.Node) -> bool:
    if len(node.users) != 1 or node.op in ("output", "placeholder"):
        return False
    (user,) = node.users
    if user.op == "output":
        return False
    uses = sum(1 for source in _occurrences(user) if source is node)
    if uses != 1:
        return False
    return is_size(node) or (user.target is operator.getitem and user.args[0] is node and node.op != "get_attr")


def _occurrences(node: fx.Node) -> Iterator[fx.Node]:
    found: list[fx.Node] = []

    def note(source: fx.Node) -> fx.Node:
        found.append(source)
        return source

    fx.node.map_arg((node.args, node.kwargs), note)
    return iter(found)


def _needed(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes without those that compute nothing anyone reads."""
    kept: list[fx.Node] = []
    read: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node in read or node.op in ("output", "placeholder") or (not node.users and _has_effect(node)):
            kept.append(node)
            read.update(node.all_input_nodes)
    return kept[::-1]


def _has_effect(node: fx.Node) -> bool:
    if any(guard in str(node.target) for guard in _GUARDS) or node.op == "get_attr":
        return False
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_module" or node.is_impure() or getattr(node.target, "__name__", "").endswith("_")


def _scope(node: fx.Node) -> str | None:
    """The block that a module belongs to: its container, cut after the last of the first three names with a digit."""
    if node.op != "call_module":
        return None
    parents = str(node.target).split(".")[:-1][:3]
    while len(parents) > 1 and not any(letter.isdigit() for letter in parents[-1]):
        parents.pop()
    return ".".join(parents) or None


def used_targets(gm: fx.GraphModule, op: str) -> Iterable[str]:
    """The targets of the needed nodes of one kind, in order, each once."""
    return dict.fromkeys(str(node.target) for node in _needed(gm) if node.op == op)
