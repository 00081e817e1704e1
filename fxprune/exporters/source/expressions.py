"""One graph node as one Python expression, in the notation that people use: `x + y`, `x[:, 0]`, `x.shape`."""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx

from fxprune.errors import ExportError
from fxprune.exporters.source.containers import Container, is_plain, reference
from fxprune.exporters.source.literals import Imports, function_name, literal, sequence
from passes.process.torch_private import OpOverload, overload_name

_INFIX: dict[object, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.lshift: "<<",
    operator.rshift: ">>",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
_PREFIX: dict[object, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
# The ATen operators of an exported graph that have a sign of their own; with `alpha` they keep their name.
_ATEN_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@"}

# What a slice without an end becomes in ATen.
_END = 2**63 - 1


@dataclass(frozen=True)
class Expression:
    """Source text: `head`, arguments separated by commas, `tail`. atomic: needs no parentheses before a dot."""

    head: str
    arguments: tuple[str, ...] = ()
    tail: str = ""
    atomic: bool = True

    def __str__(self) -> str:
        return f"{self.head}{', '.join(self.arguments)}{self.tail}"

    @property
    def operand(self) -> str:
        """The text where it binds tightest: before a dot, a bracket or beside an operator."""
        return str(self) if self.atomic else f"({self})"


@dataclass(frozen=True)
class Writer:
    """Turns nodes into expressions. known: what stands for a node that was written before."""

    gm: fx.GraphModule
    root: Container
    imports: Imports
    known: Callable[[fx.Node], Expression]

    def write(self, node: fx.Node) -> Expression:
        """The expression of one node; ExportError where it has none."""
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "call_module":
            return self._call(reference(self.root, str(node.target)), node.args, node.kwargs, node)
        if node.op == "call_method":
            return self._method(str(node.target), node)
        if node.op == "call_function":
            return self._function(node)
        raise ExportError(f"{node.name}: a node of kind {node.op} has no source")

    def argument(self, value: object, node: fx.Node) -> str:
        """An argument: a node's expression, a constant, or a structure of both."""
        if isinstance(value, fx.Node):
            return str(self.known(value))
        what = f"{node.name} ({node.op} {node.target})"
        if isinstance(value, slice):
            return f"slice({', '.join(self.argument(part, node) for part in (value.start, value.stop, value.step))})"
        if isinstance(value, list | tuple | dict | set | frozenset):
            return sequence(value, lambda item: self.argument(item, node), self.imports, what)
        return literal(value, self.imports, what)

    def _operand(self, value: object, node: fx.Node) -> str:
        if isinstance(value, fx.Node):
            return self.known(value).operand
        text = self.argument(value, node)
        return f"({text})" if text.startswith("-") else text

    def _attribute(self, node: fx.Node) -> Expression:
        path = str(node.target)
        owner, _, name = path.rpartition(".")
        value = getattr(self.gm.get_submodule(owner), name)
        if isinstance(value, torch.Tensor) or name == "training":
            return Expression(reference(self.root, path))
        if isinstance(value, torch.nn.Module):
            raise ExportError(f"{node.name}: the graph hands on the module {path} as a value, which has no source")
        return Expression(literal(value, self.imports, f"{node.name} (the attribute {path})"))

    def _method(self, name: str, node: fx.Node) -> Expression:
        base = self._operand(node.args[0], node)
        return self._call(f"{base}.{name}", node.args[1:], node.kwargs, node)

    def _call(self, callee: str, args: Iterable[object], kwargs: Mapping[str, object], node: fx.Node) -> Expression:
        given = [self.argument(value, node) for value in args]
        plain = {name: value for name, value in kwargs.items() if is_plain(name)}
        given += [f"{name}={self.argument(value, node)}" for name, value in plain.items()]
        if len(plain) < len(kwargs):
            rest = {name: value for name, value in kwargs.items() if name not in plain}
            given.append(f"**{self.argument(rest, node)}")
        return Expression(f"{callee}(", tuple(given), ")")

    def _function(self, node: fx.Node) -> Expression:
        target, args = node.target, node.args
        if isinstance(target, OpOverload):
            return self._aten(target, node)
        if node.kwargs or not args:
            return self._call(self._named(node), args, _spoken(target, node.kwargs), node)
        if target in _INFIX and len(args) == 2:
            return self._infix(_INFIX[target], node)
        if target in _PREFIX and len(args) == 1:
            return Expression(f"{_PREFIX[target]}{self._operand(args[0], node)}", atomic=False)
        if target is operator.getitem:
            return Expression(f"{self._operand(args[0], node)}[{self._index(args[1], node)}]")
        if target is operator.setitem:
            place = f"{self._operand(args[0], node)}[{self._index(args[1], node)}]"
            return Expression(f"{place} = {self.argument(args[2], node)}", atomic=False)
        if target is getattr and len(args) == 2 and isinstance(args[1], str) and is_plain(args[1]):
            return Expression(f"{self._operand(args[0], node)}.{args[1]}")
        return self._call(self._named(node), args, _spoken(target, node.kwargs), node)

    def _named(self, node: fx.Node) -> str:
        assert callable(node.target), "only functions are named"
        return function_name(node.target, self.imports, f"{node.name} ({node.op})")

    def _infix(self, sign: str, node: fx.Node) -> Expression:
        left, right = (self._operand(value, node) for value in node.args)
        return Expression(f"{left} {sign} {right}", atomic=False)

    def _index(self, index: object, node: fx.Node) -> str:
        if isinstance(index, tuple) and index:
            return ", ".join(self._index_part(part, node) for part in index) + ("," if len(index) == 1 else "")
        return self._index_part(index, node)

    def _index_part(self, part: object, node: fx.Node) -> str:
        if not isinstance(part, slice):
            return self.argument(part, node)
        start, stop = ("" if end is None else self.argument(end, node) for end in (part.start, part.stop))
        step = "" if part.step is None else f":{self.argument(part.step, node)}"
        return f"{start}:{stop}{step}"

    def _slice(self, node: fx.Node) -> Expression:
        given: tuple[object, ...] = node.args
        x, dim, start, stop, step = given + (0, None, None, 1)[len(given) - 1 :]
        if not isinstance(dim, int) or dim < 0:
            return self._call(self._named(node), node.args, node.kwargs, node)
        whole = slice(None)
        stop = None if isinstance(stop, int) and stop == _END else stop
        part = slice(None if start == 0 else start, stop, None if step == 1 else step)
        index = ", ".join(self._index_part(item, node) for item in [*[whole] * dim, part])
        return Expression(f"{self._operand(x, node)}[{index}]")

    def _aten(self, target: OpOverload, node: fx.Node) -> Expression:
        """An ATen operator under the name that torch gives it, where that takes the same arguments."""
        namespace, name = target.namespace, target.overloadpacket.__name__
        if name == "sym_size":
            return Expression(f"{self._operand(node.args[0], node)}.shape[{self.argument(node.args[1], node)}]")
        if target is torch.ops.aten.slice.Tensor:
            return self._slice(node)
        if namespace == "aten" and "out" not in overload_name(target):
            if name in _ATEN_INFIX and len(node.args) == 2 and not node.kwargs:
                return self._infix(_ATEN_INFIX[name], node)
            # Only what is generated from the operator's own schema; a Python function may order arguments its own way.
            for home, holder in (("torch", torch), ("F", F)):
                if isinstance(getattr(holder, name, None), types.BuiltinFunctionType):
                    return self._call(f"{self.imports.torch_home(home)}.{name}", node.args, node.kwargs, node)
            plain = name.removesuffix("_")
            if len(node.args) == 1 and not node.kwargs and inspect.isfunction(getattr(F, plain, None)):
                kwargs = {} if plain == name else {"inplace": True}
                return self._call(f"{self.imports.torch_home('F')}.{plain}", node.args, kwargs, node)
            if isinstance(getattr(torch.Tensor, name, None), types.MethodDescriptorType) and node.args:
                return self._method(name, node)
        return self._call(self._named(node), node.args, node.kwargs, node)


def _spoken(target: object, kwargs: Mapping[str, object]) -> dict[str, object]:
    """The keyword arguments that say something: fx writes out the defaults of torch's Python functions too."""
    if not inspect.isfunction(target):
        return dict(kwargs)
    defaults = {name: parameter.default for name, parameter in inspect.signature(target).parameters.items()}

    def is_default(name: str, value: object) -> bool:
        known = defaults.get(name, inspect.Parameter.empty)
        plain = isinstance(value, int | float | str) and type(value) is type(known)
        return value is known or (plain and value == known)

    return {name: value for name, value in kwargs.items() if not is_default(name, value)}
