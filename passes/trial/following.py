"""Compares the calls of a cut module, one by one, with what the axes of the dense one promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from passes.axes.expressions import leaves
from passes.graph.module_copies import TENSORS
from passes.ops import Record, Slot, Value, spelled
from passes.ops import constant_indices as numbers
from passes.ops.call import signature
from passes.ops.facts import COPIES, VIEWS, facts_of
from passes.ops.picked_positions import picked, renumbered
from passes.ops.table import Picked
from passes.ops.views_on_meta import in_rows
from passes.process.torch_private import OpOverload, schema_of
from passes.stream.module_stream import Watching, is_data
from passes.stream.restated_calls import Position
from passes.transform.slicing import Slicing

aten = torch.ops.aten
_NUMBERS = frozenset({int, float, bool, str, type(None)})
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
CUTS = frozenset({aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.split_with_sizes.default})
_MOVES = VIEWS | {
    aten.clone.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor,
    aten.permute.default, aten._to_copy.default,
}  # fmt: skip


Shapes = Sequence[tuple[int, ...]]


def _moves_ones(func: OpOverload, expected: Shapes, got: Shapes) -> bool:
    """Whether a call that moves data differs by where it has dimensions of one: einsum puts them elsewhere."""
    before, after = ([[size for size in shape if size != 1] for shape in shapes] for shapes in (expected, got))
    if func is aten.permute.default:
        return list(map(sorted, before)) == list(map(sorted, after))
    return func in (VIEWS | COPIES) and before == after


def are_alike(one: object, other: object) -> bool:
    """Whether two operators do the same, called by different names."""
    return one is other or {one, other} <= _SPLITS or {one, other} <= VIEWS


class Promised:
    """A tape, and what its calls give where the dense module is cut."""

    def __init__(self, tape: Sequence[Record], slicing: Slicing) -> None:
        self.tape, self.slicing = tape, slicing
        self._shapes: dict[int, Shapes] = {}
        self._numbers: dict[int, dict[str, Any]] = {}
        self._positions: dict[int, dict[int, list[int] | None]] = {}

    def shapes(self, place: int) -> Shapes:
        """The shapes of what call number `place` gives."""
        known = self._shapes.get(place)
        if known is None:
            size = self.slicing.size
            known = self._shapes[place] = [tuple([size(a) for a in v.axes]) for v in self.tape[place].outputs]
        return known

    def numbers(self, place: int) -> dict[str, Any]:
        """The numbers that call number `place` is given to compute with, by the names of its arguments."""
        known = self._numbers.get(place)
        if known is None:
            record = self.tape[place]
            known = self._numbers[place] = _scalars(record.func, *record.template)
            for name, (axis, more) in record.lengths.items() if known else ():
                if name in known:
                    known[name] = self.slicing.size(axis) + more
        return known

    def positions(self, place: int) -> dict[int, list[int] | None]:
        """For each dimension of which call number `place` takes some, and which is cut, where these are then.

        None where a position is taken that is removed.
        """
        known = self._positions.get(place)
        if known is None:
            known = self._positions[place] = {}
            record, remain, narrowed = self.tape[place], self.slicing.remain, self.slicing.narrowed
            takes = picks_some(record) and (narrowed(record.inputs[0].axes) or narrowed(record.outputs[0].axes))
            for dim, places in (positions_of(record) or {}).items() if takes else ():
                axis, result = record.inputs[0].axes[dim], record.outputs[0].axes
                whole = len(result) < len(record.inputs[0].axes)  # a single position, whose dimension is gone
                if narrowed([axis, *(() if whole else result[dim : dim + 1])]):
                    taken = np.ones(1, dtype=bool) if whole else remain(result[dim])
                    known[dim] = renumbered(places, taken, remain(axis))
        return known


class Following(Watching):
    """Compares each call with that of the tape which was recorded before anything was cut.

    moved: whether constants that the program makes of sizes have moved with these.
    """

    def __init__(self, promised: Promised, real: bool) -> None:
        super().__init__(real)
        self.moved = False
        self._passed: list[int] = []  # places of the tape whose calls were not made when their turn came
        self.promised, self._expected = promised, promised.shapes
        self.tape, self.slicing = promised.tape, promised.slicing

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        place = self._same_call(func, operands, [tensor.shape for tensor in outputs])
        if place is not None:
            following, self.place = max(self.place, place + 1), place
            self._compare(self.tape[place], func, args, kwargs, operands, outputs)
            self.place = following
        for number, tensor in enumerate(outputs):
            if tensor.is_floating_point():
                continue
            if any([tensor is operand for operand in operands]):
                self.rewritten |= schema_of(func).is_mutable
                continue
            found = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
            self.attach(tensor, Value("", (), numbers=found))

    def _same_call(self, func: OpOverload, operands: list[torch.Tensor], got: Shapes) -> int | None:
        """The place on the tape of the call that this one is; None for one that moves data and is not there.

        Where a size becomes one, programs and torch leave out copies and repetitions, or make some: such calls are
        passed over, and conversions of what they give, which may come before or after them. Where two sizes are alike,
        or are not, a program may make its calls in another order. What a program makes of sizes alone may follow them,
        as long as its axes promise nothing; it is compared where it meets data.
        """
        alike = self.place < len(self.tape) and are_alike(self.tape[self.place].func, func)
        if alike and self._expected(self.place) == got:
            return self.place
        if alike and self._is_of_sizes(self.tape[self.place], operands):
            self.moved = True
            return self.place
        for place in range(self.place, min(self.place + _SKIPPED, len(self.tape))):
            record = self.tape[place]
            if are_alike(record.func, func) and self._expected(place) == got:
                self._passed += range(self.place, place)
                return place
            if alike and (record.func not in _MOVES or func in CUTS):  # another piece of a tensor is not its next one
                break
        for place in self._passed:
            if are_alike(self.tape[place].func, func) and self._expected(place) == got:
                self._passed.remove(place)
                return place
        if alike and _moves_ones(func, self._expected(self.place), got):
            return self.place
        if self.place >= len(self.tape):
            self.differ(f"{spelled(func)} is called, which was not before")
        record = self.tape[self.place]
        if are_alike(record.func, func) and func is not aten._to_copy.default:
            expected, found = ([list(shape) for shape in shapes] for shapes in (self._expected(self.place), got))
            self.differ(f"its size does not follow: expected {expected}, got {found}")
        if func not in _MOVES:
            self.differ(f"{spelled(func)} is called in place of {spelled(record.func)}")
        return None

    def _compare(self, record, func, args, kwargs, operands, outputs) -> None:
        """A call does with its arguments what the call of the tape did."""
        self._compare_numbers(record, func, args, kwargs, operands)
        self._compare_sizes(record, func, args, kwargs)
        self._compare_positions(record, func, args, kwargs, operands)
        if func is aten.as_strided.default:
            self._compare_strides(record, outputs[0])

    def _is_of_sizes(self, record: Record, operands: list[torch.Tensor]) -> bool:
        """Whether a call is made of what the program makes of sizes, and nothing is promised of what it gives."""
        promised = any(True for value in record.outputs for axis in value.axes for _ in leaves(axis))
        return not (self.real or promised or any(map(self.holds_data, operands)))

    def _compare_numbers(
        self, record: Record, func: OpOverload, args: tuple, kwargs: dict[str, object], operands: list
    ) -> None:
        """A number that was made of a size must remain what it was where it is combined with data."""
        before = self.promised.numbers(self.place)
        if not before and not record.constants:
            return
        now = _scalars(func, args, kwargs)
        if now == before and not record.constants:
            return
        if not (any(map(self.holds_data, operands)) or any(map(is_data, record.inputs))):
            return
        wrong: list[tuple[object, object]] = [
            (old, now[name]) for name, old in before.items() if name in now and not _equal(old, now[name])
        ]
        for number, old in record.constants.items():
            there = number < len(operands) and not operands[number].is_meta
            new = operands[number].flatten().tolist() if there else old
            if len(new) != len(old):
                old = self._left_of(record.inputs[number], old)
            if len(new) == len(old) and not all(map(_equal, old, new)):
                wrong.append((old, new))
        if wrong:
            self.differ(f"a number that is made of a size changes from {wrong[0][0]} to {wrong[0][1]}", True)

    def _compare_sizes(self, record: Record, func: OpOverload, args: tuple, kwargs: dict[str, object]) -> None:
        """An argument that states how long an axis is (how many groups, say) must follow it."""
        if not record.literals:
            return
        names, _ = signature(func)
        before = names if record.func is func else signature(record.func)[0]
        for name, axis in record.literals.items():
            if name in names and name in before:
                given = kwargs.get(name, args[names.index(name)] if names.index(name) < len(args) else None)
                if type(given) is int and given >= 0 and given != self.slicing.size(axis):
                    self.differ(f"its {name} does not follow: expected {self.slicing.size(axis)}, got {given}")

    def _left_of(self, value: Value, numbers: Sequence[object]) -> list[object]:
        """What is left of a constant where units of its axes are removed."""
        whole = np.array(numbers, dtype=object).reshape([axis.size for axis in value.axes])
        left: list[object] = whole[np.ix_(*map(self.slicing.remain, value.axes))].flatten().tolist()
        return left

    def _compare_strides(self, record: Record, tensor: torch.Tensor) -> None:
        """A tensor that lay without gaps in the memory of the dense one's operand must do so in that of the cut one."""
        args, kwargs = record.template
        axes, strides = record.outputs[0].axes, kwargs.get("stride", args[2])
        if self.slicing.narrowed(axes) and in_rows([axis.size for axis in axes]) == tuple(strides):
            expected, found = list(in_rows(tensor.shape)), list(tensor.stride())
            if found != expected:
                self.differ(f"its strides do not follow: expected {expected}, got {found}")

    def _compare_positions(
        self, record: Record, func: OpOverload, args: tuple, kwargs: dict[str, object], operands: list[torch.Tensor]
    ) -> None:
        """What is taken of an axis must be what is left of the positions that were taken of it."""
        left = self.promised.positions(self.place)
        if not left:
            return
        now = picked(func, args, kwargs, list(operands[0].shape), self.numbers_of) or {}
        for dim, expected in left.items():
            if expected is None:
                self.differ("it takes a position that is removed")
            if now.get(dim) != expected:
                self.differ(f"it takes positions {_short(now.get(dim))}, and what is left is at {_short(expected)}")

    def differ(self, text: str, is_number: bool = False) -> NoReturn:
        """The running call is not what its axes promise."""
        raise Differs(Failure(self.place, text, self.stack.paths[-1], self.source(), is_number))


def without_tensors(value: Any) -> Any:
    """The arguments of a call with None for each tensor, or for what stands for one on the tape."""
    kind = type(value)
    if kind in _NUMBERS or kind in TENSORS or kind is Slot:  # which most of them are
        return value if kind in _NUMBERS else None
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, (list, tuple)):
        return list(value) if _NUMBERS.issuperset(map(type, value)) else [without_tensors(item) for item in value]
    return {k: without_tensors(v) for k, v in value.items()} if isinstance(value, dict) else value


def owned(values: Sequence[Value | None]) -> tuple[str, ...]:
    """The names of the operands that belong to the module; of others, and of unknown ones, there are none."""
    return tuple(map(own_name, values))


def own_name(value: Value | None) -> str:
    """The name of what belongs to the module; of any other value, and of an unknown one, there is none."""
    if value is None or len(value.parameters) != 1 or value.label not in value.parameters:
        return ""
    return value.label


def cut_at(func: OpOverload, args: tuple) -> tuple[str, ...]:
    """Where a call cuts its operand."""
    return tuple(map(str, args[1:])) if func in CUTS else ()


def cuts_units(record: Record) -> bool:
    """Whether a call of the tape cuts a tensor of the module, or a dimension with units."""
    value = record.inputs[0]
    return bool(value.parameters) or bool(leaves(value.axes[cut_dimension(record)]))


def cut_dimension(record: Record) -> int:
    """The dimension that a call cuts."""
    args, kwargs = record.template
    place = 2 if record.func is aten.split_with_sizes.default else 1
    return int(kwargs.get("dim", args[place] if len(args) > place else 0))


def _equal(old: object, new: object) -> bool:
    """Whether two numbers are one, written with other roundings."""
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return math.isclose(old, new, rel_tol=1e-12) or (old != old and new != new)
    return bool(old == new)


def picks_some(record: Record) -> bool:
    """Whether a call of the tape may take some positions of its first operand, and no others."""
    return facts_of(record.func).traits.picks is not None and bool(record.inputs and record.template)


def positions_of(record: Record) -> Picked | None:
    """The positions that a call of the tape takes of its first operand (see `passes.ops.picked_positions`)."""
    if not picks_some(record):
        return None
    shape = [axis.size for axis in record.inputs[0].axes]
    args, kwargs = record.template
    return picked(record.func, args, kwargs, shape, lambda slot: record.inputs[slot.number].numbers)


def _short(places: list[int] | None) -> str:
    if places is None:
        return "that are not known"
    return str(places) if len(places) <= 8 else f"[{places[0]}, {places[1]}, ..., {places[-1]}]"


def _scalars(func: OpOverload, args: tuple, kwargs: dict[str, object]) -> dict[str, Any]:
    """The arguments of a call that are numbers to compute with, and neither sizes nor tensors, by their names."""
    found, count = dict[str, Any](), len(args)
    for place, name in facts_of(func).places_of_numbers:
        actual = args[place] if place < count else kwargs.get(name)
        if isinstance(actual, (int, float)):
            found[name] = actual
    return found
