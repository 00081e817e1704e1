"""Dimension inference: what every dimension of every tensor is, as expressions over variables that are unified.

An *axis* is one dimension of one tensor. It is a tree of:

    Variable    a set of ``size`` interchangeable units that could be removed
    Constant    a number of positions that stay; carries the `Reason` that froze it
    Sum         concatenation, first term first
    Product     outer to inner: position = outer index * len(inner) + inner index
    Permuted    a variable whose units stand in another order

Operators state equalities between axes; `Space.unify` solves them by splitting variables into sums and
products until both sides are the same tree. What a tree cannot express raises `Inexpressible`, and the caller
freezes what it touches. Nothing in this module knows of tensors or of torch.

The method is first-order unification (Robinson, 1965) with two operators that are associative, and sizes that
decide every split; since sizes are known, a variable never has to contain itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np


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

    __slots__ = ("size", "terms")

    def __init__(self, terms: tuple[Axis, ...]) -> None:
        self.terms = terms
        self.size: int = sum(t.size for t in terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and other.terms == self.terms

    def __hash__(self) -> int:
        return hash((Sum, self.terms))

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.terms)) + ")"


class Product:
    """Nesting of `factors`, outer to inner; made by `nest` only."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Axis, ...]) -> None:
        self.factors = factors
        self.size: int = prod(f.size for f in factors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and other.factors == self.factors

    def __hash__(self) -> int:
        return hash((Product, self.factors))

    def __repr__(self) -> str:
        return "*".join(map(repr, self.factors))


class Permuted:
    """A variable's units in another order: position i holds unit ``order[i]``; made by `permute` only."""

    __slots__ = ("order", "size", "variable")

    def __init__(self, variable: Axis, order: tuple[int, ...]) -> None:
        self.variable, self.order = variable, order
        self.size: int = variable.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permuted) and other.variable == self.variable and other.order == self.order

    def __hash__(self) -> int:
        return hash((Permuted, self.variable, self.order))

    def __repr__(self) -> str:
        return f"permuted({self.variable!r})"


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


class Space:
    """The variables of one analysis and what they have been found to be.

    >>> space = Space()
    >>> qkv, heads = space.variable(24), space.variable(2)
    >>> outer, inner = space.factor(qkv, 4)
    >>> space.unify(outer, nest([Constant(3), heads]), Reason("view"))
    >>> space.resolve(qkv)
    3*x1(2)*x3(4)
    """

    def __init__(self) -> None:
        self._bound: dict[Variable, Axis] = {}
        self._count = 0

    def variable(self, size: int) -> Axis:
        """A fresh variable; a single unit can never be removed, so size 1 gives the constant `ONE`."""
        if size <= 1:
            return ONE if size == 1 else Constant(0)
        self._count += 1
        return Variable(self._count - 1, size)

    def resolve(self, axis: Axis) -> Axis:
        """`axis` with every variable replaced by what it has become, in normal form."""
        if isinstance(axis, Variable):
            bound = self._bound.get(axis)
            if bound is None:
                return axis
            found = self.resolve(bound)
            if found is not bound:
                self._bound[axis] = found
            return found
        if isinstance(axis, Constant):
            return axis
        if isinstance(axis, Permuted):
            inner = self.resolve(axis.variable)
            return axis if inner is axis.variable else permute(inner, axis.order)
        parts = axis.terms if isinstance(axis, Sum) else axis.factors
        found_parts = [self.resolve(p) for p in parts]
        if all(a is b for a, b in zip(parts, found_parts, strict=True)):
            return axis
        return concat(found_parts) if isinstance(axis, Sum) else nest(found_parts)

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Turn every variable of `axis` into a constant that carries `reason`."""
        for variable in list(leaves(self.resolve(axis))):
            self._bound[variable] = Constant(variable.size, reason)

    def unify(self, left: Axis, right: Axis, reason: Reason) -> None:
        """State that two axes of equal size are the same, unit for unit; `reason` says who states it.

        Raises Inexpressible (with a text for people) where their layouts have no common refinement; what was
        refined until then stays refined, which is sound: a refinement only forbids.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return
        if left.size != right.size:
            raise Inexpressible(f"axes of {left.size} and {right.size} positions cannot be the same")
        if isinstance(left, Constant):
            self.freeze(right, left.reason or reason)
        elif isinstance(right, Constant):
            self.freeze(left, right.reason or reason)
        elif isinstance(left, Variable) and isinstance(right, Variable):
            older, newer = (left, right) if left.number < right.number else (right, left)
            self._bound[newer] = older
        elif isinstance(left, Variable):
            self._bind(left, right)
        elif isinstance(right, Variable):
            self._bind(right, left)
        elif isinstance(left, Permuted) or isinstance(right, Permuted):
            self._unify_permuted(left, right, reason)
        elif isinstance(left, Sum) or isinstance(right, Sum):
            self._unify_sums(left, right, reason)
        else:
            self._unify_products(left, right, reason)

    def _bind(self, variable: Variable, axis: Axis) -> None:
        if variable in leaves(axis):
            raise Inexpressible("an order of channels that must equal itself in another order")
        self._bound[variable] = axis

    def _unify_permuted(self, left: Axis, right: Axis, reason: Reason) -> None:
        if not isinstance(left, Permuted):
            left, right = right, left
        assert isinstance(left, Permuted)
        if isinstance(right, Permuted) and left.order == right.order:
            self.unify(left.variable, right.variable, reason)
            return
        inverse = [0] * left.size
        for position, unit in enumerate(left.order):
            inverse[unit] = position
        if isinstance(left.variable, Variable):
            self.unify(left.variable, permute(right, inverse), reason)
        else:
            raise Inexpressible("a reordered axis meets one of another structure")

    def _unify_sums(self, left: Axis, right: Axis, reason: Reason) -> None:
        rest_left, rest_right = [left], [right]
        while rest_left:
            a = self._pop_first(rest_left)
            b = self._pop_first(rest_right)
            if a.size < b.size:
                b, rest = self.cut(b, a.size)
                rest_right.append(rest)
            elif b.size < a.size:
                a, rest = self.cut(a, b.size)
                rest_left.append(rest)
            self.unify(a, b, reason)

    def _pop_first(self, stack: list[Axis]) -> Axis:
        axis = self.resolve(stack.pop())
        if isinstance(axis, Sum):
            stack.extend(reversed(axis.terms[1:]))
            return axis.terms[0]
        return axis

    def _unify_products(self, left: Axis, right: Axis, reason: Reason) -> None:
        assert isinstance(left, Product) and isinstance(right, Product)
        if left.factors[-1].size > right.factors[-1].size:
            left, right = right, left
        inner = left.factors[-1]
        outer, same = self.factor(right, inner.size)
        self.unify(inner, same, reason)
        self.unify(nest(left.factors[:-1]), outer, reason)

    def cut(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        """Split `axis` into its first `position` positions and the rest. Always expressible but for reorderings."""
        axis = self.resolve(axis)
        if position <= 0:
            return Constant(0), axis
        if position >= axis.size:
            return axis, Constant(0)
        if isinstance(axis, Constant):
            return Constant(position, axis.reason), Constant(axis.size - position, axis.reason)
        if isinstance(axis, Variable):
            first, second = self.variable(position), self.variable(axis.size - position)
            self._bound[axis] = concat([first, second])
            return first, second
        if isinstance(axis, Sum):
            before: list[Axis] = []
            for number, term in enumerate(axis.terms):
                if position < term.size:
                    first, second = self.cut(term, position)
                    return concat([*before, first]), concat([second, *axis.terms[number + 1 :]])
                before.append(term)
                position -= term.size
                if position == 0:
                    return concat(before), concat(axis.terms[number + 1 :])
        if isinstance(axis, Product):
            outer, inner = axis.factors[0], nest(axis.factors[1:])
            whole, part = divmod(position, inner.size)
            first, rest = self.cut(outer, whole)
            if part == 0:
                return nest([first, inner]), nest([rest, inner])
            _, last = self.cut(rest, 1)
            inner_first, inner_rest = self.cut(inner, part)
            return (
                concat([self._times(first, inner), inner_first]),
                concat([inner_rest, self._times(last, inner)]),
            )
        raise Inexpressible(f"a cut at {position} inside a reordered axis of {axis.size}")

    def _times(self, outer: Axis, inner: Axis) -> Axis:
        return nest([outer, inner]) if outer.size else outer

    def slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """Positions ``start:stop`` of `axis`."""
        first, _ = self.cut(axis, stop)
        return self.cut(first, start)[1]

    def factor(self, axis: Axis, inner_size: int) -> tuple[Axis, Axis]:
        """Write `axis` as outer * inner with ``len(inner) == inner_size``.

        Raises Inexpressible where `inner_size` does not divide a part of the axis.
        """
        axis = self.resolve(axis)
        if inner_size == 1:
            return axis, ONE
        if inner_size == axis.size:
            return ONE, axis
        if axis.size % inner_size:
            raise Inexpressible(f"a view into {inner_size} needs a multiple of {inner_size}, not {axis.size}")
        if isinstance(axis, Constant):
            return Constant(axis.size // inner_size, axis.reason), Constant(inner_size, axis.reason)
        if isinstance(axis, Variable):
            outer, inner = self.variable(axis.size // inner_size), self.variable(inner_size)
            self._bound[axis] = nest([outer, inner])
            return outer, inner
        if isinstance(axis, Sum):
            return self._factor_sum(axis, inner_size)
        if isinstance(axis, Product):
            *front, last = axis.factors
            if last.size >= inner_size:
                outer, inner = self.factor(last, inner_size)
                return nest([*front, outer]), inner
            if inner_size % last.size:
                raise Inexpressible(f"a view into {inner_size} crosses blocks of {last.size}")
            outer, inner = self.factor(nest(front), inner_size // last.size)
            return outer, nest([inner, last])
        raise Inexpressible(f"a view into {inner_size} of a reordered axis")

    def _factor_sum(self, axis: Sum, inner_size: int) -> tuple[Axis, Axis]:
        outers: list[Axis] = []
        shared: Axis | None = None
        for block in self._blocks(axis, inner_size):
            outer, inner = self.factor(block, inner_size)
            outers.append(outer)
            if shared is None:
                shared = inner
            else:
                self.unify(shared, inner, Reason(f"a view into {inner_size} of a joined axis"))
        assert shared is not None, "a sum has at least two terms"
        return self.resolve(concat(outers)), self.resolve(shared)

    def _blocks(self, axis: Sum, inner_size: int) -> list[Axis]:
        """The terms of a sum, neighbours joined where only together they fill one inner block."""
        blocks: list[Axis] = []
        open_terms: list[Axis] = []
        for term in axis.terms:
            open_terms.append(term)
            filled = sum(t.size for t in open_terms)
            if filled == inner_size or (len(open_terms) == 1 and filled % inner_size == 0):
                blocks.append(concat(open_terms))
                open_terms = []
        if open_terms:
            joined = " and ".join(str(term.size) for term in axis.terms)
            raise Inexpressible(
                f"the axis joins {joined} positions, and a view into {inner_size} needs multiples of {inner_size}"
            )
        return blocks


def leaves(axis: Axis) -> Iterator[Variable]:
    """The variables of a resolved axis, in order of appearance, repeats included."""
    if isinstance(axis, Variable):
        yield axis
    elif isinstance(axis, (Sum, Product)):
        for part in axis.terms if isinstance(axis, Sum) else axis.factors:
            yield from leaves(part)
    elif isinstance(axis, Permuted):
        yield from leaves(axis.variable)


def constants(axis: Axis, offset: int = 0) -> Iterator[tuple[Constant, int]]:
    """The frozen runs of a resolved axis, each with the first position it takes in the outermost sum."""
    if isinstance(axis, Constant):
        yield axis, offset
    elif isinstance(axis, Sum):
        for term in axis.terms:
            yield from constants(term, offset)
            offset += term.size


def positions(axis: Axis) -> dict[Variable, np.ndarray]:
    """For each variable of a resolved axis the positions that its units take, an integer array (size, k).

    >>> c = Variable(0, 2)
    >>> positions(nest([c, Constant(3)]))[c].tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if isinstance(axis, Variable):
        return {axis: np.arange(axis.size)[:, None]}
    if isinstance(axis, Constant):
        return {}
    if isinstance(axis, Permuted):
        place = np.empty(axis.size, dtype=np.int64)
        place[np.asarray(axis.order)] = np.arange(axis.size)
        return {v: np.sort(place[index], axis=1) for v, index in positions(axis.variable).items()}
    found: dict[Variable, np.ndarray] = {}

    def add(variable: Variable, index: np.ndarray) -> None:
        known = found.get(variable)
        joined = index if known is None else np.concatenate([known, index], axis=1)
        found[variable] = joined

    if isinstance(axis, Sum):
        offset = 0
        for term in axis.terms:
            for variable, index in positions(term).items():
                add(variable, index + offset)
            offset += term.size
        return found
    stride, before = axis.size, 1
    for factor in axis.factors:
        stride //= factor.size
        outer = np.arange(before) * (factor.size * stride)
        inner = np.arange(stride)
        for variable, index in positions(factor).items():
            spread = outer[None, :, None, None] + index[:, None, :, None] * stride + inner[None, None, None, :]
            add(variable, spread.reshape(variable.size, -1))
        before *= factor.size
    return {
        v: np.stack([np.unique(row) for row in index]) if _repeats(axis, v) else index for v, index in found.items()
    }


def _repeats(axis: Axis, variable: Variable) -> bool:
    return sum(v is variable for v in leaves(axis)) > 1


@dataclass(frozen=True)
class BlockMask:
    """Kept units of a variable that differ from block to block of an outer one: boolean rows (len(outer), size)."""

    outer: Variable
    rows: np.ndarray


Mask: TypeAlias = "np.ndarray | BlockMask"


def kept(mask: Mask) -> int:
    """How many units a mask keeps (in each block)."""
    return int((mask.rows[0] if isinstance(mask, BlockMask) else mask).sum())


def survivors(axis: Axis, keep: Mapping[Variable, Mask]) -> np.ndarray:
    """Which positions of a resolved axis remain, a boolean array (size,), given boolean masks of kept units.

    An axis that holds a variable without the outer one that its blocks belong to tells the first block's positions:
    their number is right, and no parameter is sliced by it.
    """
    if isinstance(axis, Variable):
        mask = keep.get(axis)
        if isinstance(mask, BlockMask):
            return mask.rows[0]
        return np.ones(axis.size, dtype=bool) if mask is None else mask
    if isinstance(axis, Constant):
        return np.ones(axis.size, dtype=bool)
    if isinstance(axis, Permuted):
        return survivors(axis.variable, keep)[np.asarray(axis.order)]
    if isinstance(axis, Sum):
        return np.concatenate([survivors(term, keep) for term in axis.terms])
    sizes = [factor.size for factor in axis.factors]
    grid = np.ones(sizes, dtype=bool)
    for place, factor in enumerate(axis.factors):
        mask = keep.get(factor) if isinstance(factor, Variable) else None
        if isinstance(mask, BlockMask) and mask.outer in axis.factors:
            outer = axis.factors.index(mask.outer)
            rows = mask.rows if outer < place else mask.rows.T
            shape = [size if d in (place, outer) else 1 for d, size in enumerate(sizes)]
            grid &= rows.reshape(shape)
        else:
            grid &= survivors(factor, keep).reshape([-1 if d == place else 1 for d in range(len(sizes))])
    return grid.reshape(-1)


def length(axis: Axis, width: Callable[[Variable], object]):
    """The number of positions of a resolved axis, with `width` giving the value of each variable.

    Any values with + and * will do: integers, numpy arrays, polynomials.
    """
    if isinstance(axis, Variable):
        return width(axis)
    if isinstance(axis, Constant):
        return axis.size
    if isinstance(axis, Permuted):
        return length(axis.variable, width)
    if isinstance(axis, Sum):
        total = length(axis.terms[0], width)
        for term in axis.terms[1:]:
            total = total + length(term, width)
        return total
    total = length(axis.factors[0], width)
    for factor in axis.factors[1:]:
        total = total * length(factor, width)
    return total


def rename(axis: Axis, replace: Mapping[Variable, Axis], keep: Mapping[Variable, Mask]) -> Axis:
    """A resolved axis after pruning: each variable replaced, reorderings restricted to the kept units."""
    if isinstance(axis, Variable):
        return replace.get(axis, axis)
    if isinstance(axis, Constant):
        return axis
    if isinstance(axis, Sum):
        return concat([rename(term, replace, keep) for term in axis.terms])
    if isinstance(axis, Product):
        return nest([rename(factor, replace, keep) for factor in axis.factors])
    mask = survivors(axis.variable, keep)
    rank = np.cumsum(mask) - 1
    return permute(rename(axis.variable, replace, keep), [int(rank[u]) for u in axis.order if mask[u]])
