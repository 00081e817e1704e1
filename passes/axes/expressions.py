"""What every dimension of every tensor is, as expressions over variables: the trees, and their normal form.

An *axis* is one dimension of one tensor. It is a tree of:

    Variable    a set of ``size`` interchangeable units that could be removed
    Constant    a number of positions that stay; carries the `Reason` that froze it
    Sum         concatenation, first term first
    Product     outer to inner: position = outer index * len(inner) + inner index
    Permuted    a variable whose units stand in another order

Operators state equalities between axes, which `passes.axes.unification` solves. Nothing here knows of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias


@dataclass(frozen=True)
class Reason:
    """Why something stays as it is: what, at which node and operator, and the user's source line."""

    text: str
    node: str = ""
    op: str = ""
    source: str = ""

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.op, self.source) if part)
        where = f"{self.node} ({place})" if place else self.node
        return f"{where}: {self.text}" if where else self.text


class Inexpressible(Exception):
    """An equality that no tree of sums and products can state."""


class Variable:
    """`size` units that can be removed one by one. Compared by identity."""

    __slots__ = ("number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size

    def __repr__(self) -> str:
        return f"x{self.number}({self.size})"


class Constant:
    """`size` positions that stay. All constants of a size are equal; the reason is only evidence."""

    __slots__ = ("reason", "size")
    variables: tuple[Variable, ...] = ()

    def __init__(self, size: int, reason: Reason | None = None) -> None:
        self.size, self.reason = size, reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and other.size == self.size

    def __hash__(self) -> int:
        return hash((Constant, self.size))

    def __repr__(self) -> str:
        return str(self.size)


class Sum:
    """Concatenation of `terms`; made by `concat` only."""

    __slots__ = ("size", "terms", "variables")

    def __init__(self, terms: tuple[Axis, ...]) -> None:
        self.terms = terms
        self.size: int = sum([t.size for t in terms])
        self.variables = _together(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and other.terms == self.terms

    def __hash__(self) -> int:
        return hash((Sum, self.terms))

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.terms)) + ")"


class Product:
    """Nesting of `factors`, outer to inner; made by `nest` only."""

    __slots__ = ("factors", "size", "variables")

    def __init__(self, factors: tuple[Axis, ...]) -> None:
        self.factors = factors
        self.size: int = prod([f.size for f in factors])
        self.variables = _together(factors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and other.factors == self.factors

    def __hash__(self) -> int:
        return hash((Product, self.factors))

    def __repr__(self) -> str:
        return "*".join(map(repr, self.factors))


class Permuted:
    """A variable's units in another order: position i holds unit ``order[i]``; made by `permute` only."""

    __slots__ = ("order", "size", "variable", "variables")

    def __init__(self, variable: Axis, order: tuple[int, ...]) -> None:
        self.variable, self.order = variable, order
        self.size: int = variable.size
        self.variables = leaves(variable)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permuted) and other.variable == self.variable and other.order == self.order

    def __hash__(self) -> int:
        return hash((Permuted, self.variable, self.order))

    def __repr__(self) -> str:
        return f"permuted({self.variable!r})"


AXES = (Variable, Constant, Sum, Product, Permuted)
Axis: TypeAlias = "Variable | Constant | Sum | Product | Permuted"
ONE = Constant(1)


def concat(terms: Iterable[Axis]) -> Axis:
    """The concatenation of `terms` in normal form: sums flattened, neighbouring constants merged.

    >>> concat([Constant(2), Constant(3)])
    5
    """
    flat: list[Axis] = []
    for term in terms:
        for part in term.terms if isinstance(term, Sum) else (term,):
            last = flat[-1] if flat else None
            if isinstance(part, Constant) and isinstance(last, Constant):
                flat[-1] = Constant(last.size + part.size, last.reason or part.reason)
            elif part.size:
                flat.append(part)
    if not flat:
        return Constant(0)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def nest(factors: Iterable[Axis]) -> Axis:
    """The product of `factors`, outer to inner, in normal form: flattened, ones dropped, constants merged.

    A product is *not* distributed over an inner sum: ``h*(x + y)`` is laid out otherwise than ``h*x + h*y``.
    """
    flat: list[Axis] = []
    for factor in factors:
        for part in factor.factors if isinstance(factor, Product) else (factor,):
            last = flat[-1] if flat else None
            if part.size == 1:
                continue
            if isinstance(part, Constant) and isinstance(last, Constant):
                flat[-1] = Constant(last.size * part.size, last.reason or part.reason)
            else:
                flat.append(part)
    if not flat:
        return ONE
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def permute(axis: Axis, order: Sequence[int]) -> Axis:
    """`axis` with position i taken from ``order[i]``, a permutation; a reversal is pushed into sums and products."""
    order = tuple(order)
    if order == tuple(range(axis.size)) or isinstance(axis, Constant):
        return axis
    if order == tuple(range(axis.size - 1, -1, -1)):
        if isinstance(axis, Sum):
            return concat([_reverse(t) for t in reversed(axis.terms)])
        if isinstance(axis, Product):
            return nest([_reverse(f) for f in axis.factors])
    if isinstance(axis, Permuted):
        return permute(axis.variable, [axis.order[i] for i in order])
    return Permuted(axis, order)


def _reverse(axis: Axis) -> Axis:
    return permute(axis, range(axis.size - 1, -1, -1))


def leaves(axis: Axis) -> tuple[Variable, ...]:
    """The variables of an axis, in order of appearance, repeats included.

    >>> x, y = Variable(0, 4), Variable(1, 2)
    >>> leaves(concat([nest([x, y]), x]))
    (x0(4), x1(2), x0(4))
    """
    return (axis,) if isinstance(axis, Variable) else axis.variables


def _together(parts: tuple[Axis, ...]) -> tuple[Variable, ...]:
    return tuple([variable for part in parts for variable in leaves(part)])


def constants(axis: Axis, offset: int = 0) -> Iterator[tuple[Constant, int]]:
    """The frozen runs of a resolved axis, each with the first position it takes in the outermost sum."""
    if isinstance(axis, Constant):
        yield axis, offset
    elif isinstance(axis, Sum):
        for term in axis.terms:
            yield from constants(term, offset)
            offset += term.size
