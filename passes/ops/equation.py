"""Rules written as equations over named axes, in the manner of einsum.

    "n (g i) *s, (g o) i *k, (g o)? -> n (g o) *t"

* a name is one axis; where a name occurs twice the axes are the same;
* ``(g o)`` is one axis that is a product, outer to inner;
* ``*s`` is any number of axes whose positions mean space or time: they are frozen, and an unbound one on the right
  takes the sizes of the output;
* ``...`` is any number of axes that are carried from the inputs to the outputs;
* ``?`` after an operand says that it may be None;
* a name that stands on the left alone is contracted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from passes.arguments import got, is_a, quoted
from passes.axes.expressions import Axis, nest
from passes.errors import ArgumentError
from passes.ops.call import MOVED, Call
from passes.ops.table import Rule, rule
from passes.process.torch_private import schema_of

_TOKEN = re.compile(r"\(([^)]*)\)|(\*?\w+|\.\.\.)")


@dataclass(frozen=True)
class _Dim:
    """One axis, the product of `names`, or with `many` any number of axes under one name."""

    names: tuple[str, ...]
    many: bool


@dataclass(frozen=True)
class _Operand:
    dims: tuple[_Dim, ...]
    optional: bool
    single: int  # how many of the dims are one axis each


@dataclass(frozen=True)
class _Equation:
    left: tuple[_Operand, ...]
    right: tuple[_Operand, ...]
    contracted: tuple[str, ...]


@cache
def _parse(equation: str) -> _Equation:
    left, arrow, right = equation.partition("->")
    if not arrow:
        raise ValueError(f"equation {equation!r} has no '->'")

    def side(text: str) -> tuple[_Operand, ...]:
        operands = []
        for part in text.split(","):
            dims = tuple(
                _Dim(tuple(product.split()) if product else (name,), name.startswith("*") or name == "...")
                for product, name in _TOKEN.findall(part)
            )
            operands.append(_Operand(dims, part.strip().endswith("?"), sum(not dim.many for dim in dims)))
        return tuple(operands)

    operands, results = side(left), side(right)
    inputs = {name for operand in operands for dim in operand.dims for name in dim.names if not dim.many}
    kept = {name for operand in results for dim in operand.dims for name in dim.names}
    return _Equation(operands, results, tuple(sorted(inputs - kept)))


class Solved:
    """The names of an equation after one call: ``solved["n"]`` is an axis, ``solved["*s"]`` a list of them."""

    def __init__(self) -> None:
        self.one: dict[str, Axis] = {}
        self.many: dict[str, list[Axis]] = {}

    def __getitem__(self, name: str) -> Any:
        return self.many[name] if name in self.many else self.one[name]

    def lookup(self, names: str) -> list[Axis]:
        """All axes of space-separated names; a name that is bound to none adds none."""
        found: list[Axis] = []
        for name in names.split():
            if name in self.many:
                found.extend(self.many[name])
            elif name in self.one:
                found.append(self.one[name])
        return found


def solve(
    call: Call, equation: str, operands: Sequence[Any], sizes: dict[str, int] | None = None
) -> tuple[list[list[Axis]], Solved]:
    """Apply `equation` to tensor `operands` (None where optional); `sizes` gives lengths of product factors.

    Returns the axes of the outputs, and the solved names.
    """
    parsed = _parse(equation)
    solved, sizes = Solved(), sizes or {}
    for operand, tensor in zip(parsed.left, operands, strict=True):
        if tensor is not None:
            _bind(call, operand, call.axes(tensor), solved, sizes)
        elif not operand.optional:
            raise ValueError(f"{call.func}: operand {operand.dims} of {equation!r} is missing")
    call.contract(*[solved.one[n] for n in parsed.contracted if n in solved.one])
    outputs = [
        _build(call, operand, number, solved) for number, operand in enumerate(parsed.right[: len(call.outputs)])
    ]
    return outputs, solved


def _bind(call: Call, operand: _Operand, axes: list[Axis], solved: Solved, sizes: dict[str, int]) -> None:
    spare, one = len(axes) - operand.single, solved.one
    at = 0
    for dim in operand.dims:
        if dim.many:
            _bind_many(call, dim.names[0], axes[at : at + spare], solved)
            at += spare
            continue
        rest = axes[at]
        if len(dim.names) == 1:
            (name,) = dim.names
            one[name] = call.tie(one[name], rest) if name in one else rest
            at += 1
            continue
        for number in range(len(dim.names) - 1, -1, -1):
            name = dim.names[number]
            known = solved.one.get(name)
            if number == 0:
                inner = rest
            else:
                size = known.size if known is not None else sizes.get(name)
                if size is None:
                    outer = 1
                    for other in dim.names[:number]:
                        outer *= solved.one[other].size if other in solved.one else sizes[other]
                    size = rest.size // outer
                rest, inner = call.factor(rest, size)
            solved.one[name] = inner if known is None else call.tie(known, inner)
        at += 1


def _bind_many(call: Call, name: str, axes: list[Axis], solved: Solved) -> None:
    if name.startswith("*"):
        call.freeze(axes, MOVED)
        solved.many.setdefault(name, axes)
    elif name in solved.many:
        for known, axis in zip(reversed(solved.many[name]), reversed(axes), strict=False):
            if known.size == axis.size:
                call.tie(known, axis)
    else:
        solved.many[name] = axes


def _build(call: Call, operand: _Operand, number: int, solved: Solved) -> list[Axis]:
    spare = call.outputs[number].dim() - operand.single
    result: list[Axis] = []
    for dim in operand.dims:
        if len(dim.names) == 1 and dim.names[0] in solved.one:
            result.append(call.space.resolve(solved.one[dim.names[0]]))
        elif not dim.many:
            named = [solved.one.get(n) for n in dim.names]
            if None in named:
                result += call.fixed(number, slice(len(result), len(result) + 1))
            else:
                result.append(call.space.resolve(named[0] if len(named) == 1 else nest(named)))  # type: ignore[arg-type]
        elif dim.names[0] == "..." and "..." in solved.many and len(solved.many["..."]) == spare:
            result.extend(solved.many["..."])
        else:
            made = call.fixed(number, slice(len(result), len(result) + spare))
            solved.many[dim.names[0]] = made
            result.extend(made)
    return result


def equation_rule(
    operators: Sequence[object], equation: str, operands: Sequence[str], macs: str = "",
    sizes: Callable[[Call], dict[str, int]] | None = None, override: bool = False, **traits: object,
) -> Rule:  # fmt: skip
    """Register an equation for `operators`: argument names of its operands, and the names whose product is its MACs.

    This is the way to teach fxprune an operator of your own in one line:

        equation_rule([torch.ops.mine.mix], "n c *s, c d -> n d *s", ["x", "weight"], macs="n c d *s")

    override, traits: as for `rule`.
    """

    _check(operators, equation, operands, macs, sizes)

    def apply(call: Call) -> list[list[Axis]]:
        tensors = [call.get(*name.split("|")) for name in operands]
        outputs, solved = solve(call, equation, tensors, sizes(call) if sizes else None)
        if macs:
            call.count(*solved.lookup(macs))
        return outputs

    apply.__name__ = equation
    return rule(*operators, override=override, **traits)(apply)


def _check(operators: object, equation: Any, operands: object, macs: Any, sizes: object) -> None:
    """Refuse what could not be applied to any call of the operators."""
    if isinstance(operators, str) or not isinstance(operators, Sequence) or not operators:
        raise ArgumentError(f"equation_rule: operators: got {got(operators)}; expected a list, [torch.ops.mine.mix]")
    is_a(equation, str, "equation_rule: equation", "a text such as 'n i, o i -> n o'")
    is_a(macs, str, "equation_rule: macs", "the names whose product is the MACs, such as 'n i o'")
    if isinstance(operands, str) or not isinstance(operands, Sequence) or not all(isinstance(o, str) for o in operands):
        raise ArgumentError(f"equation_rule: operands: got {got(operands)}; expected a list of argument names")
    if sizes is not None and not callable(sizes):
        raise ArgumentError(f"equation_rule: sizes: got {got(sizes)}; expected a function of the call, or None")
    if equation.count("->") != 1 or re.sub(_TOKEN, "", equation).replace("->", "").strip(" ,?"):
        raise ArgumentError(
            f"equation_rule: {quoted(equation)} is no equation; expected names, products (g o), *s, ..., commas and "
            "one '->'"
        )
    parsed = _parse(equation)
    if len(parsed.left) != len(operands):
        raise ArgumentError(
            f"equation_rule: {quoted(equation)} has {len(parsed.left)} operands on its left, and {len(operands)} "
            "are named: "
            f"{', '.join(operands)}; name one argument for each"
        )
    dims = [dim for operand in (*parsed.left, *parsed.right) for dim in operand.dims]
    known = {name for dim in dims for name in dim.names}
    unknown = [name for name in macs.split() if name not in known]
    if unknown:
        raise ArgumentError(f"equation_rule: macs names {quoted(unknown[0])}, which is no axis of {quoted(equation)}")
    for operator in operators:
        schema = schema_of(operator)
        arguments = [a.name for a in schema.arguments] if schema is not None else None
        missing = [o for o in operands if arguments is not None and not set(o.split("|")) & set(arguments)]
        if missing:
            raise ArgumentError(
                f"equation_rule: {operator} has no argument {quoted(missing[0])}; it has {', '.join(arguments or ())}"
            )
