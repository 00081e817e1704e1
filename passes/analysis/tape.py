"""What inference found, resolved: the axes of every tensor and the tape of operator calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch

from passes.analysis.parameter_roles import roles_of
from passes.axes.expressions import Axis, Constant, Variable
from passes.axes.index_sets import Mask, rename
from passes.ops import Record, Value
from passes.process.torch_private import pytree
from passes.stream.graph_stream import Inferred
from passes.stream.module_run import Lifetimes, ModuleInferred

T = TypeVar("T")


def resolve_axes(change: Callable[[Axis], Axis], values: Iterable[Value], records: Iterable[Record]) -> None:
    """Replace every axis of a run by ``change(axis)``, what it is once the run is over, in place; constants stay."""
    for value in values:
        value.axes = tuple([axis if type(axis) is Constant else change(axis) for axis in value.axes])
        if value.watched:
            value.watched = tuple(map(change, value.watched))
    for record in records:
        for name, changed in _with_changed_axes(record, change):
            setattr(record, name, changed)


def _with_changed_axes(record: Record, change: Callable[[Axis], Axis]) -> Iterator[tuple[str, Any]]:
    """The fields of a record that hold axes, its operands and results aside, with these changed; no empty ones."""
    for name in ("contracted", "mixed"):
        if axes := getattr(record, name):
            yield name, tuple(map(change, axes))
    if record.macs:
        yield "macs", tuple([tuple(map(change, product)) for product in record.macs])
    if record.literals:
        yield "literals", {name: change(axis) for name, axis in record.literals.items()}
    if record.lengths:
        yield "lengths", {name: (change(axis), more) for name, (axis, more) in record.lengths.items()}
    for name in ("needs", "multiples"):
        if counted := getattr(record, name):
            yield name, tuple([(change(axis), count) for axis, count in counted])


class Structure:
    """Axes of tensors by name, of node results by node, the tape of operator calls, and node results on meta.

    records: the tape, or a function that makes it when it is first read; that of a chain's last network never is.
    beside: calls of other runs (the other mode, another size), which say what must go together but count for no cost.
    lifetimes: of the tensors, where a module was run; in a graph they follow from its nodes.
    """

    def __init__(
        self, tensors: Mapping[str, tuple[Axis, ...]], values: Mapping[str, Any],
        records: Sequence[Record] | Callable[[], Sequence[Record]], vals: Mapping[str, object],
        beside: Sequence[Record] | Callable[[], Sequence[Record]] = (), lifetimes: Lifetimes | None = None,
    ) -> None:  # fmt: skip
        self.tensors, self.values, self.vals = tensors, values, vals
        self._records, self._beside, self.lifetimes = records, beside, lifetimes

    @property
    def records(self) -> Sequence[Record]:
        """The calls of operators in the order of the run."""
        if callable(self._records):
            self._records = self._records()
        return self._records

    @property
    def beside(self) -> Sequence[Record]:
        """The calls of runs beside that on the example."""
        if callable(self._beside):
            self._beside = self._beside()
        return self._beside

    @property
    def all_records(self) -> Sequence[Record]:
        """The calls of every run."""
        return [*self.records, *self.beside] if self.beside else self.records

    @classmethod
    def of(cls, inferred: Inferred | ModuleInferred) -> Structure:
        """Resolve every axis of an inference, in place: what is resolved once can be resolved again."""
        inferred.space.settle()
        change = once_each(inferred.space.resolve)
        beside = getattr(inferred, "beside", ())
        resolve_axes(change, inferred.known, (*inferred.records, *beside))
        inferred.tensors = {name: tuple(map(change, axes)) for name, axes in inferred.tensors.items()}
        lifetimes = getattr(inferred, "lifetimes", None)
        return cls(inferred.tensors, inferred.values, inferred.records, inferred.vals, beside, lifetimes)

    @cached_property
    def roles(self) -> dict[tuple[str, Variable, int], str]:
        """What a variable in a dimension of a parameter is used as (see `Slice`)."""
        return roles_of(self.all_records, self.tensors)

    def renamed(
        self, new: Mapping[Variable, Axis], keep: Mapping[Variable, Mask], numbers: Mapping[str, object]
    ) -> Structure:
        """The structure after pruning: variables replaced by smaller ones, nodes of `numbers` by these."""

        def shrink(val: Any, value: Any) -> Any:
            if not isinstance(value, Value):
                return val
            return torch.empty([a.size for a in value.axes], dtype=val.dtype, device="meta")

        change = once_each(lambda axis: rename(axis, new, keep))
        known: dict[int, Value] = {}

        def value(v: Value) -> Value:
            made = known.get(id(v))
            if made is None:
                made = known[id(v)] = with_fields(
                    v, axes=tuple(map(change, v.axes)), watched=tuple(map(change, v.watched))
                )
            return made

        def changed(records: Sequence[Record]) -> Sequence[Record]:
            return [
                with_fields(
                    r,
                    inputs=list(map(value, r.inputs)),
                    outputs=list(map(value, r.outputs)),
                    **dict(_with_changed_axes(r, change)),
                )
                for r in records
            ]

        # `numbers` also has nodes that rewriting has added.
        values = {**numbers, **{name: map_values(value, v) for name, v in self.values.items()}}
        vals = {name: map_together(shrink, val, values[name]) for name, val in self.vals.items()}
        tensors = {name: tuple(map(change, axes)) for name, axes in self.tensors.items()}
        return Structure(
            tensors,
            values,
            lambda: changed(self.records),
            {**vals, **numbers},
            lambda: changed(self.beside),
            self.lifetimes,
        )


def with_fields(item: T, **changes: object) -> T:
    """A copy with some fields replaced; dataclasses.replace takes several times as long, and there are hundreds."""
    made = object.__new__(type(item))
    made.__dict__.update(item.__dict__, **changes)
    return made


def once_each(function: Callable[[Axis], T]) -> Callable[[Axis], T]:
    """`function`, called once an axis: many tensors share one, and to hash a long sum takes time."""
    known: dict[int, tuple[Axis, T]] = {}

    def change(axis: Axis) -> T:
        made = known.get(id(axis))
        if made is None:
            made = known[id(axis)] = axis, function(axis)
        return made[1]

    return change


def map_values(function: Callable[[Value], object], tree: object) -> Any:
    """A node's result with each value replaced."""
    return function(tree) if isinstance(tree, Value) else pytree.tree_map_only(Value, function, tree)


def map_together(function: Callable[[object, object], object], first: object, second: object) -> Any:
    """``function(a, b)`` for the leaves of two trees of one shape, arranged as the first."""
    if isinstance(second, Value):
        return function(first, second)
    leaves, spec = pytree.tree_flatten(first)
    return pytree.tree_unflatten(map(function, leaves, pytree.tree_leaves(second)), spec)
