"""Laws of axes, against brute force: every position of an axis is labelled with the units that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    constants,
    leaves,
    nest,
    permute,
)
from passes.axes.index_sets import length, positions, rename, survivors
from passes.axes.unification import Space

Label = tuple[tuple[Variable, int], ...]  # the units whose removal removes a position, sorted
WHY = Reason("because", "node", "aten.op", "model.py:1")
MOST = 48


def labels(axis: Axis) -> list[Label]:
    """What each position of a resolved axis belongs to, straight from the meaning of the four kinds of node."""
    if isinstance(axis, Variable):
        return [((axis, unit),) for unit in range(axis.size)]
    if isinstance(axis, Constant):
        return [()] * axis.size
    if isinstance(axis, Sum):
        return [label for term in axis.terms for label in labels(term)]
    if isinstance(axis, Permuted):
        inner = labels(axis.variable)
        return [inner[unit] for unit in axis.order]
    found: list[Label] = [()]
    for factor in axis.factors:
        found = [_both(outer, inner) for outer in found for inner in labels(factor)]
    return found


def _both(first: Label, second: Label) -> Label:
    return tuple(sorted({*first, *second}, key=lambda unit: (unit[0].number, unit[1])))


class System:
    """A space, the axes made so far, and relations between them that must hold for good."""

    def __init__(self) -> None:
        self.space = Space()
        self.pool: list[Axis] = [self.space.variable(size) for size in (4, 6, 12)]
        self.relations: list[Callable[[], tuple[list[Label], list[Label]]]] = []

    def now(self, axis: Axis) -> list[Label]:
        """Labels of `axis` as it stands."""
        return labels(self.space.resolve(axis))

    def relate(self, relation: Callable[[], tuple[list[Label], list[Label]]]) -> None:
        """`relation` gives two lists of labels that must be equal, now and later."""
        self.relations.append(relation)

    def attempt(self, action: Callable[[], None], *axes: Axis) -> None:
        """Do it, or freeze the axes it is about where no tree can express it, as `Call` does."""
        try:
            action()
        except Inexpressible as error:
            assert str(error)
            for axis in axes:
                self.space.freeze(axis, WHY)

    def step(self, name: str, first: int, second: int, number: int) -> None:
        """One step of a random history."""
        a, b = self.pool[first % len(self.pool)], self.pool[second % len(self.pool)]
        getattr(self, "_" + name)(self.space.resolve(a), self.space.resolve(b), number)

    def _variable(self, a: Axis, b: Axis, number: int) -> None:
        self.pool.append(self.space.variable((2, 3, 4, 6, 8, 12, a.size)[number % 7]))

    def _constant(self, a: Axis, b: Axis, number: int) -> None:
        self.pool.append(Constant(number + 1, WHY))

    def _concat(self, a: Axis, b: Axis, number: int) -> None:
        if a.size + b.size <= MOST:
            joined = concat([a, b])
            self.relate(lambda: (self.now(joined), self.now(a) + self.now(b)))
            self.pool.append(joined)

    def _nest(self, a: Axis, b: Axis, number: int) -> None:
        if a.size * b.size <= MOST:
            made = nest([a, b])
            self.relate(lambda: (self.now(made), [_both(x, y) for x in self.now(a) for y in self.now(b)]))
            self.pool.append(made)

    def _permute(self, a: Axis, b: Axis, number: int) -> None:
        order = (
            list(reversed(range(a.size))) if number % 2 else np.random.default_rng(number).permutation(a.size).tolist()
        )
        moved = permute(a, order)
        self.relate(lambda: (self.now(moved), [self.now(a)[i] for i in order]))
        self.pool.append(moved)

    def _cut(self, a: Axis, b: Axis, number: int) -> None:
        def cut() -> None:
            first, second = self.space.cut(a, number)
            assert (first.size, second.size) == (min(number, a.size), max(0, a.size - number))
            self.relate(lambda: (self.now(a), self.now(first) + self.now(second)))
            self.pool += [part for part in (first, second) if part.size]

        self.attempt(cut, a)

    def _factor(self, a: Axis, b: Axis, number: int) -> None:
        size = (2, 3, 4, 6)[number % 4]

        def factor() -> None:
            outer, inner = self.space.factor(a, size)
            assert (outer.size * inner.size, inner.size) == (a.size, size)
            self.relate(lambda: (self.now(a), [_both(x, y) for x in self.now(outer) for y in self.now(inner)]))
            self.pool += [outer, inner]

        if a.size % size == 0:
            self.attempt(factor, a)
        else:
            with pytest.raises(Inexpressible, match=f"multiple of {size}"):
                factor()

    def _unify(self, a: Axis, b: Axis, number: int) -> None:
        others = [axis for axis in self.pool if axis.size == a.size]
        b = others[number % len(others)]
        self.attempt(lambda: self.space.unify(a, b, WHY), a, b)
        self.relate(lambda: (self.now(a), self.now(b)))

    def _freeze(self, a: Axis, b: Axis, number: int) -> None:
        if number == 0:
            self.space.freeze(a, WHY)
            assert not list(leaves(self.space.resolve(a)))


NAMES = [name[1:] for name in vars(System) if name.startswith("_") and not name.startswith("__")]
histories = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 9), st.integers(0, 9), st.integers(0, 11)), min_size=3, max_size=14
)


def after(history: Sequence[tuple[str, int, int, int]]) -> System:
    """The system at the end of `history`, every relation of which has been checked."""
    system = System()
    for step in history:
        system.step(*step)
    for relation in system.relations:
        left, right = relation()
        assert left == right
    return system


@given(histories)
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_relations_hold_for_good(history: list[tuple[str, int, int, int]]) -> None:
    """Cuts, factors, joins, nestings, orders and equalities stay true whatever is found out later."""
    system = after(history)
    for axis in map(system.space.resolve, system.pool):
        assert system.space.resolve(axis) == axis
        assert _normal(axis), f"{axis} is not in normal form"


def _normal(axis: Axis) -> bool:
    """No sum in a sum, no product in a product, no neighbouring constants, no factors of one, no parts of zero."""
    if isinstance(axis, (Sum, Product)):
        parts = axis.terms if isinstance(axis, Sum) else axis.factors
        alike = any(isinstance(a, Constant) and isinstance(b, Constant) for a, b in zip(parts, parts[1:], strict=False))
        empty = 0 if isinstance(axis, Sum) else 1
        return (
            len(parts) > 1
            and not alike
            and all(type(part) is not type(axis) and part.size > empty and _normal(part) for part in parts)
        )
    return True


@given(histories, st.randoms(use_true_random=False))
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_index_sets_are_those_of_the_labels(history: list[tuple[str, int, int, int]], random) -> None:
    """positions, survivors, length and rename agree with counting labels."""
    system = after(history)
    for axis in map(system.space.resolve, system.pool):
        marked = labels(axis)
        found = positions(axis)
        assert set(found) == set(leaves(axis)) == {variable for label in marked for variable, _ in label}
        for variable, index in found.items():
            expected = [
                [i for i, label in enumerate(marked) if (variable, unit) in label] for unit in range(variable.size)
            ]
            assert [sorted(row) for row in index.tolist()] == expected
        keep = {v: np.array([random.random() < 0.5 for _ in range(v.size)]) for v in found}
        for mask in keep.values():
            mask[random.randrange(len(mask))] = True
        left = [all(keep[v][unit] for v, unit in label) for label in marked]
        assert survivors(axis, keep).tolist() == left
        smaller = {v: Variable(v.number, int(mask.sum())) for v, mask in keep.items()}
        assert length(axis, lambda v, smaller=smaller: smaller[v].size) == sum(left)
        rank = {v: np.cumsum(mask) - 1 for v, mask in keep.items()}
        reduced = [
            tuple((smaller[v], int(rank[v][u])) for v, u in label)
            for label, stays in zip(marked, left, strict=True)
            if stays
        ]
        new = {v: s if s.size > 1 else ONE for v, s in smaller.items()}
        single = {s for s in smaller.values() if s.size == 1}
        dropped = [tuple(unit for unit in label if unit[0] not in single) for label in reduced]
        assert labels(rename(axis, new, keep)) == dropped


@given(histories)
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_frozen_runs_are_those_without_labels(history: list[tuple[str, int, int, int]]) -> None:
    """constants() names runs of positions that no unit can take away."""
    system = after(history)
    for axis in map(system.space.resolve, system.pool):
        marked = labels(axis)
        for constant, start in constants(axis):
            assert not any(marked[start : start + constant.size])


def space_and(*sizes: int) -> tuple[Space, list[Axis]]:
    space = Space()
    return space, [space.variable(size) for size in sizes]


def test_concatenation_cuts_a_variable() -> None:
    space, (a, b, c) = space_and(3, 5, 8)
    space.unify(c, concat([a, b]), WHY)
    assert space.resolve(c) == concat([a, b])


def test_two_concatenations_have_a_common_refinement() -> None:
    space, (a, b, c, d) = space_and(6, 4, 3, 7)
    space.unify(concat([a, b]), concat([c, d]), WHY)
    assert [t.size for t in space.resolve(concat([a, b])).terms] == [3, 3, 4]


def test_views_refine_one_another() -> None:
    """(2 6) and (4 3) are 2 * 2 * 3."""
    space, (a,) = space_and(12)
    space.factor(a, 6)
    space.factor(a, 3)
    assert [f.size for f in space.resolve(a).factors] == [2, 2, 3]


def test_views_that_cross_are_inexpressible() -> None:
    """(3 4) and (2 6): a block of 6 ends within a block of 4."""
    space, (a,) = space_and(12)
    space.factor(a, 4)
    with pytest.raises(Inexpressible, match="a view into 6 crosses blocks of 4"):
        space.factor(a, 6)


def test_a_sum_is_factored_block_by_block() -> None:
    """cat of 4 and 8 channels seen as (... 4): three blocks with one inner variable."""
    space, (a, b) = space_and(4, 8)
    outer, inner = space.factor(concat([a, b]), 4)
    assert space.resolve(a) == space.resolve(inner)
    assert labels(space.resolve(b)) == [_both(x, y) for x in labels(space.resolve(outer))[1:] for y in labels(inner)]


def test_a_product_is_not_distributed_over_an_inner_sum() -> None:
    _, (h, x, y) = space_and(2, 3, 4)
    assert nest([h, concat([x, y])]) != concat([nest([h, x]), nest([h, y])])


def test_a_cut_inside_a_block_keeps_what_is_left_together() -> None:
    """A cut at 4 of 3 blocks of 3: the first whole, the second in two."""
    space, (a, b) = space_and(3, 3)
    first, second = space.cut(nest([a, b]), 4)
    assert first.size == 4 and second.size == 5
    assert labels(space.resolve(nest([a, b]))) == labels(space.resolve(first)) + labels(space.resolve(second))


def test_freezing_one_side_freezes_the_other_and_carries_the_reason() -> None:
    space, (a, b) = space_and(6, 6)
    space.unify(a, b, WHY)
    space.freeze(a, WHY)
    assert str(space.resolve(b).reason) == "node (aten.op, model.py:1): because"
    later = space.variable(6)
    space.unify(later, b, Reason("another"))
    assert space.resolve(later).reason is WHY


def test_in_an_order_that_must_equal_itself_the_units_of_a_cycle_go_together() -> None:
    space, (a,) = space_and(7)
    space.unify(a, permute(a, [6, 2, 1, 3, 5, 4, 0]), WHY)
    units = [sorted(row) for index in positions(space.resolve(a)).values() for row in index.tolist()]
    assert sorted(units) == [[0, 6], [1, 2], [4, 5]], "the fixed one is single, and stays"


def test_what_an_index_picks() -> None:
    space, (a, b, c) = space_and(6, 6, 6)
    order = [4, 0, 3]
    picked = space.pick(a, order)
    whole = labels(space.resolve(a))
    assert labels(space.resolve(picked)) == [whole[i] for i in order]
    assert labels(space.resolve(space.pick(b, order * 2))) == 2 * labels(space.resolve(space.pick(b, order)))
    first, second = space.cut(permute(c, [5, 4, 3, 2, 1, 0]), 2)
    assert labels(space.resolve(first)) + labels(space.resolve(second)) == labels(space.resolve(c))[::-1]
    with pytest.raises(Inexpressible, match="more often"):
        space.pick(space.variable(6), [0, 0, 1])


def test_a_view_of_a_shuffle_that_an_index_states() -> None:
    space, (a,) = space_and(6)
    outer, inner = space.factor(permute(a, [0, 3, 1, 4, 2, 5]), 2)
    assert [outer.size, inner.size] == [3, 2]
    assert space.resolve(a) == nest([inner, outer])


def test_orders_undo_one_another() -> None:
    space, (a, b) = space_and(5, 5)
    order = [2, 0, 1, 4, 3]
    assert permute(permute(a, order), np.argsort(order).tolist()) == a
    space.unify(permute(a, order), b, WHY)
    assert labels(space.resolve(b)) == [labels(space.resolve(a))[i] for i in order]


def test_sizes_must_agree() -> None:
    space, (a, b) = space_and(4, 6)
    with pytest.raises(Inexpressible, match="4 and 6 positions"):
        space.unify(a, b, WHY)


def test_a_single_unit_is_no_variable() -> None:
    assert Space().variable(1) is ONE and Space().variable(0) == Constant(0)


def _histories(count: int) -> list[list[tuple[str, int, int, int]]]:
    rng = np.random.default_rng(0)
    return [
        [(NAMES[rng.integers(len(NAMES))], *map(int, rng.integers(0, 10, 3))) for _ in range(rng.integers(3, 14))]
        for _ in range(count)
    ]


def _swapped_factors(space: Space, axis: Axis, inner_size: int) -> tuple[Axis, Axis]:
    """Inner before outer, where the sizes let it pass."""
    if isinstance(axis, Variable):
        outer, inner = space.variable(axis.size // inner_size), space.variable(inner_size)
        space._bound[axis] = nest([inner, outer])
        return outer, inner
    return _FACTOR(space, axis, inner_size)


def _order_not_inverted(space: Space, left: Axis, right: Axis, reason: Reason) -> None:
    """Binds a variable to the order itself instead of its inverse."""
    if isinstance(left, Permuted) and isinstance(left.variable, Variable) and not isinstance(right, Permuted):
        space.unify(left.variable, permute(right, left.order), reason)
    else:
        _UNIFY_PERMUTED(space, left, right, reason)


_FACTOR, _UNIFY_PERMUTED = Space.factor, Space._unify_permuted


@pytest.mark.parametrize(("method", "wrong"), [("factor", _swapped_factors), ("_unify_permuted", _order_not_inverted)])
def test_the_labels_catch_a_wrong_algebra(monkeypatch: pytest.MonkeyPatch, method: str, wrong: Callable) -> None:
    monkeypatch.setattr(Space, method, wrong)
    caught = 0
    for history in _histories(150):
        try:
            after(history)
        except AssertionError:
            caught += 1
    assert caught, f"a wrong {method} went unseen"
