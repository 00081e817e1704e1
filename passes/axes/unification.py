"""Dimension inference: equalities between axes, solved by unification.

Operators state that axes are the same; `Space.unify` solves this by splitting variables into sums and products until
both sides are the same tree. What a tree cannot express raises `Inexpressible`, and the caller freezes what it
touches. Nothing in this module knows of tensors or of torch.

The method is first-order unification (Robinson, 1965) with two operators that are associative, and sizes that
decide every split; since sizes are known, a variable never has to contain itself, but for an order of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_

import numpy as np

from passes.axes.expressions import (
    ONE,
    Axis,
    Constant,
    Inexpressible,
    Permuted,
    Product,
    Reason,
    Sum,
    Variable,
    concat,
    leaves,
    nest,
    permute,
)

Because = Reason | Callable[[], Reason]  # a reason, or what makes it where something freezes


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
        self._chosen: list[tuple[Axis, Reason]] = []
        self._routed: list[Axis] = []

    def variable(self, size: int) -> Axis:
        """A fresh variable; a single unit can never be removed, so size 1 gives the constant `ONE`."""
        if size <= 1:
            return ONE if size == 1 else Constant(0)
        self._count += 1
        return Variable(self._count - 1, size)

    def start_at(self, number: int) -> None:
        """Number new variables from `number` on: where two are tied, the one with the lower number stays."""
        self._count = number

    def forget(self) -> None:
        """Take back every equality that was stated."""
        self._bound.clear()
        self._chosen.clear()
        self._routed.clear()

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
        if all(map(is_, parts, found_parts)):
            return axis
        return concat(found_parts) if isinstance(axis, Sum) else nest(found_parts)

    def freeze(self, axis: Axis, reason: Because) -> None:
        """Turn every variable of `axis` into a constant that carries `reason`."""
        variables = leaves(self.resolve(axis))
        if variables:
            made = reason if isinstance(reason, Reason) else reason()
            for variable in variables:
                self._bound[variable] = Constant(variable.size, made)

    def freeze_unless_routed(self, axis: Axis, reason: Reason) -> None:
        """Freeze `axis` when the run is over (`settle`), but for the axes that `route` was called with by then."""
        if leaves(self.resolve(axis)):
            self._chosen.append((axis, reason))

    def route(self, axis: Axis) -> None:
        """Positions of `axis` (experts) are chosen by value, and used only to look up what is there."""
        self._routed.append(axis)

    def settle(self) -> None:
        """Freeze what waits in `freeze_unless_routed` and is not routed."""
        routed = {v for axis in self._routed for v in leaves(self.resolve(axis))}
        for axis, reason in self._chosen:
            for variable in leaves(self.resolve(axis)):
                if variable not in routed:
                    self.freeze(variable, reason)

    def unify(self, left: Axis, right: Axis, reason: Because) -> None:
        """State that two axes of equal size are the same, unit for unit; `reason` says who states it.

        Raises Inexpressible (with a text for people) where their layouts have no common refinement; what was
        refined until then stays refined, which is sound: a refinement only forbids.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left is right:
            return
        if left.size != right.size:
            raise Inexpressible(f"axes of {left.size} and {right.size} positions cannot be the same")
        if isinstance(left, Variable) and isinstance(right, Variable):
            older, newer = (left, right) if left.number < right.number else (right, left)
            self._bound[newer] = older
        elif left == right:
            return
        elif isinstance(left, Constant):
            self.freeze(right, left.reason or reason)
        elif isinstance(right, Constant):
            self.freeze(left, right.reason or reason)
        elif isinstance(left, Variable):
            self._bind(left, right, reason)
        elif isinstance(right, Variable):
            self._bind(right, left, reason)
        elif isinstance(left, Permuted) or isinstance(right, Permuted):
            self._unify_permuted(left, right, reason)
        elif isinstance(left, Sum) or isinstance(right, Sum):
            self._unify_sums(left, right, reason)
        else:
            self._unify_products(left, right, reason)

    def _bind(self, variable: Variable, axis: Axis, reason: Because) -> None:
        if variable not in leaves(axis):
            self._bound[variable] = axis
        elif isinstance(axis, Permuted) and axis.variable is variable:
            self._bound[variable] = self._cycles(axis.order, reason)
        else:
            raise Inexpressible("an order of channels that must equal itself in another order")

    def _cycles(self, order: Sequence[int], reason: Because) -> Axis:
        """An axis that equals itself in another order: the units of each cycle of the order go together."""
        cycles: dict[int, list[list[int]]] = {}
        seen: set[int] = set()
        for start in range(len(order)):
            cycle = []
            while start not in seen:
                seen.add(start)
                cycle.append(start)
                start = order[start]
            if cycle:
                cycles.setdefault(len(cycle), []).append(cycle)
        place = [0] * len(order)
        unit = iter(range(len(order)))
        for cycle in (c for same in cycles.values() for c in same):
            for position in cycle:
                place[position] = next(unit)
        made = reason if isinstance(reason, Reason) else reason()
        parts = [nest([self.variable(len(same)), Constant(size, made)]) for size, same in cycles.items()]
        return permute(concat(parts), place)

    def _unify_permuted(self, left: Axis, right: Axis, reason: Because) -> None:
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
            raise Inexpressible("a reordered axis is tied to one of another structure")

    def _unify_sums(self, left: Axis, right: Axis, reason: Because) -> None:
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

    def _unify_products(self, left: Axis, right: Axis, reason: Because) -> None:
        assert isinstance(left, Product) and isinstance(right, Product)
        if left.factors[-1].size > right.factors[-1].size:
            left, right = right, left
        inner = left.factors[-1]
        outer, same = self.factor(right, inner.size)
        self.unify(inner, same, reason)
        self.unify(nest(left.factors[:-1]), outer, reason)

    def cut(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        """Split `axis` into its first `position` positions and the rest.

        Raises Inexpressible where the positions of a reordered product are torn apart.
        """
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
        assert isinstance(axis, Permuted), "no other kind of axis is left"
        return self.pick(axis, range(position)), self.pick(axis, range(position, axis.size))

    def _times(self, outer: Axis, inner: Axis) -> Axis:
        return nest([outer, inner]) if outer.size else outer

    def slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """Positions ``start:stop`` of `axis`."""
        first, _ = self.cut(axis, stop)
        return self.cut(first, start)[1]

    def pick(self, axis: Axis, order: Sequence[int]) -> Axis:
        """Positions `order` of `axis`, in that order; what is not picked becomes apart from what is.

        Raises Inexpressible for positions that are picked unequally often, and for a product's that are no run.
        """
        axis, order = self.resolve(axis), list(order)
        if not order:
            return Constant(0)
        once = list(dict.fromkeys(order))
        if len(once) < len(order):
            return self._pick_repeatedly(axis, order, once)
        if isinstance(axis, Constant):
            return Constant(len(order), axis.reason)
        if order == list(range(axis.size)):
            return axis
        if isinstance(axis, Permuted):
            return self.pick(axis.variable, [axis.order[i] for i in order])
        if order == list(range(order[0], order[0] + len(order))):
            return self.slice(axis, order[0], order[0] + len(order))
        if isinstance(axis, Sum):
            return self._pick_of_sum(axis, order)
        if len(order) == axis.size:
            return permute(axis, order)
        if isinstance(axis, Product):
            raise Inexpressible("some positions of an axis that is a product are picked by an index")
        taken, rest = self.variable(len(order)), self.variable(axis.size - len(order))
        place = [0] * axis.size
        chosen = set(order)
        for number, position in enumerate([*order, *(p for p in range(axis.size) if p not in chosen)]):
            place[position] = number
        self._bound[axis] = permute(concat([taken, rest]), place)
        return taken

    def _pick_repeatedly(self, axis: Axis, order: list[int], once: list[int]) -> Axis:
        times = len(order) // len(once)
        if order == once * times:
            return nest([Constant(times), self.pick(axis, once)])
        if order == [position for position in once for _ in range(times)]:
            return nest([self.pick(axis, once), Constant(times)])
        raise Inexpressible("an index picks some positions more often than others")

    def _pick_of_sum(self, axis: Sum, order: list[int]) -> Axis:
        """Runs of positions within one term each; a term is looked up anew, since the run before may have split it."""
        ends = np.cumsum([term.size for term in axis.terms])
        terms = np.searchsorted(ends, order, side="right").tolist()
        starts = [n for n in range(len(order)) if n == 0 or terms[n] != terms[n - 1]]
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            first = int(ends[terms[start]]) - axis.terms[terms[start]].size
            parts.append(self.pick(axis.terms[terms[start]], [p - first for p in order[start:stop]]))
        return self.resolve(concat(parts))

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
        return self._factor_permuted(axis, inner_size)

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

    def _factor_permuted(self, axis: Permuted, inner_size: int) -> tuple[Axis, Axis]:
        """A channel shuffle written as an index: the order of a table read by columns."""
        for rows in (n for n in range(2, axis.size) if axis.size % n == 0):
            if axis.order == tuple(np.arange(axis.size).reshape(rows, -1).T.ravel().tolist()):
                outer, inner = self.factor(axis.variable, axis.size // rows)
                return self.factor(nest([inner, outer]), inner_size)
        raise Inexpressible(f"a view into {inner_size} of a reordered axis")

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
