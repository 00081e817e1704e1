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

from passes.axes import Axis, nest
from passes.ops.registry import Call, Rule, rule

_TOKEN = re.compile(r"\(([^)]*)\)|(\*?\w+|\.\.\.)")


@dataclass(frozen=True)
class _Operand:
    dims: tuple[tuple[str, ...], ...]
    optional: bool


@cache
def _parse(equation: str) -> tuple[tuple[_Operand, ...], tuple[_Operand, ...]]:
    left, arrow, right = equation.partition("->")
    if not arrow:
        raise ValueError(f"equation {equation!r} has no '->'")

    def side(text: str) -> tuple[_Operand, ...]:
        operands = []
        for part in text.split(","):
            dims = tuple(
                tuple(m.group(1).split()) if m.group(1) is not None else (m.group(2),) for m in _TOKEN.finditer(part)
            )
            operands.append(_Operand(dims, part.strip().endswith("?")))
        return tuple(operands)

    return side(left), side(right)


def _is_many(dim: tuple[str, ...]) -> bool:
    return len(dim) == 1 and (dim[0].startswith("*") or dim[0] == "...")


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
    left, right = _parse(equation)
    solved, sizes = Solved(), sizes or {}
    for operand, tensor in zip(left, operands, strict=True):
        if tensor is None:
            if not operand.optional:
                raise ValueError(f"{call.func}: operand {operand.dims} of {equation!r} is missing")
            continue
        _bind(call, operand, call.axes(tensor), solved, sizes)
    inputs = {name for operand in left for dim in operand.dims for name in dim if not _is_many(dim)}
    kept = {name for operand in right for dim in operand.dims for name in dim}
    call.contract(*(solved.one[n] for n in sorted(inputs - kept) if n in solved.one))
    outputs = []
    for number, operand in enumerate(right):
        if number < len(call.outputs):
            outputs.append(_build(call, operand, number, solved))
    return outputs, solved


def _bind(call: Call, operand: _Operand, axes: list[Axis], solved: Solved, sizes: dict[str, int]) -> None:
    spare = len(axes) - sum(not _is_many(d) for d in operand.dims)
    at = 0
    for dim in operand.dims:
        if _is_many(dim):
            _bind_many(call, dim[0], axes[at : at + spare], solved)
            at += spare
            continue
        rest = axes[at]
        for number, name in reversed(list(enumerate(dim))):
            if number == 0:
                inner = rest
            else:
                size = solved.one[name].size if name in solved.one else sizes.get(name)
                if size is None:
                    outer = 1
                    for other in dim[:number]:
                        outer *= solved.one[other].size if other in solved.one else sizes[other]
                    size = rest.size // outer
                rest, inner = call.factor(rest, size)
            solved.one[name] = call.tie(solved.one[name], inner) if name in solved.one else inner
        at += 1


def _bind_many(call: Call, name: str, axes: list[Axis], solved: Solved) -> None:
    if name.startswith("*"):
        for axis in axes:
            call.freeze(axis, "the operator moves over this axis as over space or time")
        solved.many.setdefault(name, axes)
    elif name in solved.many:
        for known, axis in zip(reversed(solved.many[name]), reversed(axes), strict=False):
            if known.size == axis.size:
                call.tie(known, axis)
    else:
        solved.many[name] = axes


def _build(call: Call, operand: _Operand, number: int, solved: Solved) -> list[Axis]:
    fixed = call.fixed(number)
    spare = len(fixed) - sum(not _is_many(d) for d in operand.dims)
    result: list[Axis] = []
    for dim in operand.dims:
        if not _is_many(dim):
            named = [solved.one.get(n) for n in dim]
            result.append(fixed[len(result)] if None in named else call.space.resolve(nest(named)))  # type: ignore[arg-type]
        elif dim[0] in solved.many and len(solved.many[dim[0]]) == spare and dim[0] == "...":
            result.extend(solved.many[dim[0]])
        else:
            made = fixed[len(result) : len(result) + spare]
            solved.many[dim[0]] = made
            result.extend(made)
    return result


def equation_rule(
    operators: Sequence[Any], equation: str, operands: Sequence[str], macs: str = "",
    sizes: Callable[[Call], dict[str, int]] | None = None,
) -> Rule:  # fmt: skip
    """Register an equation for `operators`: argument names of its operands, and the names whose product is its MACs.

    This is the way to teach fxprune an operator of your own in one line:

        equation_rule([torch.ops.mine.mix], "n c *s, c d -> n d *s", ["x", "weight"], macs="n c d *s")
    """

    def apply(call: Call) -> list[list[Axis]]:
        tensors = [call.get(*name.split("|")) for name in operands]
        outputs, solved = solve(call, equation, tensors, sizes(call) if sizes else None)
        if macs:
            call.count(*solved.lookup(macs))
        return outputs

    apply.__name__ = equation
    return rule(*operators)(apply)
