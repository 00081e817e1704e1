"""Compares the calls of a cut module, one by one, with what the axes of the dense one promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import numpy as np
import torch

from passes.ops import Record, Value, spelled, traits_of
from passes.ops import constant_indices as numbers
from passes.ops.picked_positions import Picked, picked, renumbered
from passes.stream.module_stream import Watching
from passes.stream.restated_calls import Position
from passes.transform.slicing import Slicing

aten = torch.ops.aten
_SKIPPED = 9  # how many calls a cut module may leave out in one place


@dataclass
class Failure:
    """Where a run differs from what its axes promise. place: number of the call. path: of the module that ran.

    is_number: a number that a size was made into differs, and no shape. numbers: those that the call was given.
    """

    place: int
    text: str
    path: str
    source: str
    is_number: bool = False
    numbers: Mapping[Position, Any] = field(default_factory=dict)

    def lacks(self, position: Position, number: int) -> bool:
        """Whether the call is given another number than this one at `position`."""
        return position not in self.numbers or bool(self.numbers[position] != number)


class Differs(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


# A chunk whose halves differ in size is called as a split into stated sizes.
_SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default})
VIEWS = frozenset({aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.alias.default})
_MOVES = VIEWS | {
    aten.clone.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor,
    aten.permute.default,
}  # fmt: skip


Shapes = Sequence[tuple[int, ...]]


def _without_ones(shapes: Shapes) -> list[list[int]]:
    return [sorted(size for size in shape if size != 1) for shape in shapes]


def _alike(one: Any, other: Any) -> bool:
    return one is other or {one, other} <= _SPLITS or {one, other} <= VIEWS


class Promised:
    """A tape, and what its calls give where the dense module is cut."""

    def __init__(self, tape: Sequence[Record], slicing: Slicing) -> None:
        self.tape, self.slicing = tape, slicing
        self._shapes: dict[int, Shapes] = {}

    def shapes(self, place: int) -> Shapes:
        """The shapes of what call number `place` gives."""
        known = self._shapes.get(place)
        if known is None:
            size = self.slicing.size
            known = self._shapes[place] = [tuple([size(a) for a in v.axes]) for v in self.tape[place].outputs]
        return known


class Following(Watching):
    """Compares each call with that of the tape which was recorded before anything was cut."""

    def __init__(self, promised: Promised, real: bool) -> None:
        super().__init__(real)
        self.tape, self.slicing, self._expected = promised.tape, promised.slicing, promised.shapes

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        record = self._same_call(func, [tensor.shape for tensor in outputs])
        if record is not None:
            self._compare_numbers(record, func, args, kwargs, operands)
            self._compare_positions(record, func, args, kwargs, operands)
            self.place += 1
        for number, tensor in enumerate(outputs):
            if any(tensor is operand for operand in operands):
                self.rewritten |= func._schema.is_mutable and not tensor.is_floating_point()
                continue
            if not tensor.is_floating_point():
                found = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
                self.attach(tensor, Value("", (), numbers=found))

    def _same_call(self, func: Any, got: Shapes) -> Record | None:
        """The call of the tape that this one is, with `place` at it; None for one that moves data and is not there.

        Where a size becomes one, programs and torch leave out copies and repetitions, or make some: such calls are
        passed over.
        """
        alike = self.place < len(self.tape) and _alike(self.tape[self.place].func, func)
        for place in range(self.place, min(self.place + _SKIPPED, len(self.tape))):
            record = self.tape[place]
            if _alike(record.func, func) and self._expected(place) == got:
                self.place = place
                return record
            if alike and record.func not in _MOVES:
                break
        if (
            alike and func is aten.permute.default and _without_ones(self._expected(self.place)) == _without_ones(got)
        ):  # einsum moves a dimension of one elsewhere
            return self.tape[self.place]
        if self.place >= len(self.tape):
            self._differ(f"{spelled(func)} is called, which was not before")
        record = self.tape[self.place]
        if _alike(record.func, func):
            expected, found = ([list(shape) for shape in shapes] for shapes in (self._expected(self.place), got))
            self._differ(f"its size does not follow: expected {expected}, got {found}")
        if func not in _MOVES:
            self._differ(f"{spelled(func)} is called in place of {spelled(record.func)}")
        return None

    def _compare_numbers(self, record: Record, func: Any, args: tuple, kwargs: dict[str, Any], operands: list) -> None:
        """A number that was made of a size must remain what it was where it meets data."""
        scalars = _scalars(func, args, kwargs)
        some = record.constants or any([number is not None for number in scalars])
        if not some or not any(self.holds_data(tensor) for tensor in operands):
            return
        wrong: list[tuple[Any, Any]] = [
            (old, new)
            for old, new in zip(_scalars(func, *record.template), scalars, strict=True)
            if None not in (old, new) and not _equal(old, new)
        ]
        now = self.constants_among(operands)
        for number, old in record.constants.items():
            new = now.get(number, old)
            if len(new) == len(old) and not all(map(_equal, old, new)):
                wrong.append((old, new))
        if wrong:
            self._differ(f"a number that is made of a size changes from {wrong[0][0]} to {wrong[0][1]}", True)

    def _compare_positions(
        self, record: Record, func: Any, args: tuple, kwargs: dict[str, Any], operands: list[torch.Tensor]
    ) -> None:
        """What is taken of an axis must be what is left of the positions that were taken of it."""
        before = positions_of(record)
        if before is None:
            return
        now = picked(func, args, kwargs, list(operands[0].shape), self.numbers_of) or {}
        for dim, places in before.items():
            axis, result = record.inputs[0].axes[dim], record.outputs[0].axes
            whole = len(result) < len(record.inputs[0].axes)  # a single position, whose dimension is gone
            if not self.slicing.narrowed([axis, *(() if whole else result[dim : dim + 1])]):
                continue
            taken = np.ones(1, dtype=bool) if whole else self.slicing.remain(result[dim])
            expected = renumbered(places, taken, self.slicing.remain(axis))
            if expected is None:
                self._differ("it takes a position that is removed")
            if now.get(dim) != expected:
                self._differ(f"it takes positions {_short(now.get(dim))}, and what is left is at {_short(expected)}")

    def _differ(self, text: str, is_number: bool = False) -> NoReturn:
        raise Differs(Failure(self.place, text, self.stack.paths[-1], self.source(), is_number))


def _equal(old: Any, new: Any) -> bool:
    """Whether two numbers are one, written with other roundings."""
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return math.isclose(old, new, rel_tol=1e-12) or (old != old and new != new)
    return bool(old == new)


def positions_of(record: Record) -> Picked | None:
    """The positions that a call of the tape takes of its first operand (see `passes.ops.picked_positions`)."""
    if not record.inputs or not record.template or traits_of(record.func).picks is None:
        return None
    shape = [axis.size for axis in record.inputs[0].axes]
    args, kwargs = record.template
    return picked(record.func, args, kwargs, shape, lambda slot: record.inputs[slot.number].numbers)


def _short(places: list[int] | None) -> str:
    if places is None:
        return "that are not known"
    return str(places) if len(places) <= 8 else f"[{places[0]}, {places[1]}, ..., {places[-1]}]"


def _scalars(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call that are numbers to compute with, and no sizes; None for those that are tensors."""
    found = []
    for place, name in _places_of_numbers(func):
        actual = kwargs.get(name, args[place] if place < len(args) else None)
        found.append(actual if isinstance(actual, (int, float)) else None)
    return found


@cache
def _places_of_numbers(func: Any) -> list[tuple[int, str]]:
    kinds = [str(formal.type).removeprefix("Optional[") for formal in func._schema.arguments]
    return [
        (place, formal.name)
        for place, (formal, kind) in enumerate(zip(func._schema.arguments, kinds, strict=True))
        if kind.startswith(("number", "float", "Tensor"))
    ]
