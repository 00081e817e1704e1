"""Compares the calls of a cut module, one by one, with what the axes of the dense one promise."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import numpy as np
import torch

from passes.analysis.tape import once_each
from passes.axes.expressions import Axis, Constant, Product, Sum, leaves
from passes.ops import Record, Slot, Value, spelled, traits_of
from passes.ops import constant_indices as numbers
from passes.ops.call import signature
from passes.ops.picked_positions import picked, renumbered
from passes.ops.table import Picked
from passes.ops.views import COPIES, VIEWS, segments
from passes.process.torch_private import OpOverload, schema_of
from passes.stream.inference import ATTRIBUTE
from passes.stream.module_run import OF_INPUTS
from passes.stream.module_stream import Watching, is_data
from passes.stream.restated_calls import Position
from passes.transform.slicing import Slicing

aten = torch.ops.aten
_ANY = sys.maxsize  # a length that inputs may give
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


def _alike(one: object, other: object) -> bool:
    return one is other or {one, other} <= _SPLITS or {one, other} <= VIEWS


class Promised:
    """A tape, and what its calls give where the dense module is cut."""

    def __init__(self, tape: Sequence[Record], slicing: Slicing) -> None:
        self.tape, self.slicing = tape, slicing
        self._shapes: dict[int, Shapes] = {}
        self._numbers: dict[int, list[Any] | None] = {}
        self._positions: dict[int, dict[int, list[int] | None]] = {}

    def shapes(self, place: int) -> Shapes:
        """The shapes of what call number `place` gives."""
        known = self._shapes.get(place)
        if known is None:
            size = self.slicing.size
            known = self._shapes[place] = [tuple([size(a) for a in v.axes]) for v in self.tape[place].outputs]
        return known

    def numbers(self, place: int) -> list[Any] | None:
        """The numbers that call number `place` is given, None for each tensor; None where it has none."""
        if place not in self._numbers:
            record = self.tape[place]
            found = _scalars(record.func, *record.template)
            for at, (_, name) in enumerate(_places_of_numbers(record.func) if record.lengths else ()):
                if name in record.lengths and found[at] is not None:
                    axis, more = record.lengths[name]
                    found[at] = self.slicing.size(axis) + more
            some = record.constants or any(number is not None for number in found)
            self._numbers[place] = found if some else None
        return self._numbers[place]

    def positions(self, place: int) -> dict[int, list[int] | None]:
        """For each dimension of which call number `place` takes some, and which is cut, where these are then.

        None where a position is taken that is removed.
        """
        known = self._positions.get(place)
        if known is None:
            known = self._positions[place] = {}
            record, remain = self.tape[place], self.slicing.remain
            for dim, places in (positions_of(record) or {}).items():
                axis, result = record.inputs[0].axes[dim], record.outputs[0].axes
                whole = len(result) < len(record.inputs[0].axes)  # a single position, whose dimension is gone
                if self.slicing.narrowed([axis, *(() if whole else result[dim : dim + 1])]):
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
            if any([tensor is operand for operand in operands]):
                self.rewritten |= schema_of(func).is_mutable and not tensor.is_floating_point()
                continue
            if not tensor.is_floating_point():
                found = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
                self.attach(tensor, Value("", (), numbers=found))

    def _same_call(self, func: OpOverload, operands: list[torch.Tensor], got: Shapes) -> int | None:
        """The place on the tape of the call that this one is; None for one that moves data and is not there.

        Where a size becomes one, programs and torch leave out copies and repetitions, or make some: such calls are
        passed over, and conversions of what they give, which may come before or after them. Where two sizes are alike,
        or are not, a program may make its calls in another order. What a program makes of sizes alone may follow them,
        as long as its axes promise nothing; it is compared where it meets data.
        """
        alike = self.place < len(self.tape) and _alike(self.tape[self.place].func, func)
        if alike and self._expected(self.place) == got:
            return self.place
        if alike and self._is_of_sizes(self.tape[self.place], operands):
            self.moved = True
            return self.place
        for place in range(self.place, min(self.place + _SKIPPED, len(self.tape))):
            record = self.tape[place]
            if _alike(record.func, func) and self._expected(place) == got:
                self._passed += range(self.place, place)
                return place
            if alike and (record.func not in _MOVES or func in CUTS):  # another piece of a tensor is not its next one
                break
        for place in self._passed:
            if _alike(self.tape[place].func, func) and self._expected(place) == got:
                self._passed.remove(place)
                return place
        if alike and _moves_ones(func, self._expected(self.place), got):
            return self.place
        if self.place >= len(self.tape):
            self._differ(f"{spelled(func)} is called, which was not before")
        record = self.tape[self.place]
        if _alike(record.func, func) and func is not aten._to_copy.default:
            expected, found = ([list(shape) for shape in shapes] for shapes in (self._expected(self.place), got))
            self._differ(f"its size does not follow: expected {expected}, got {found}")
        if func not in _MOVES:
            self._differ(f"{spelled(func)} is called in place of {spelled(record.func)}")
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
        now = _scalars(func, args, kwargs) if before is not None else None
        if before is None or now is None or (now == before and not record.constants):
            return
        if not (any(map(self.holds_data, operands)) or any(map(is_data, record.inputs))):
            return
        wrong: list[tuple[object, object]] = [
            (old, new) for old, new in zip(before, now, strict=True) if None not in (old, new) and not _equal(old, new)
        ]
        for number, old in record.constants.items():
            there = number < len(operands) and not operands[number].is_meta
            new = operands[number].flatten().tolist() if there else old
            if len(new) != len(old):
                old = self._left_of(record.inputs[number], old)
            if len(new) == len(old) and not all(map(_equal, old, new)):
                wrong.append((old, new))
        if wrong:
            self._differ(f"a number that is made of a size changes from {wrong[0][0]} to {wrong[0][1]}", True)

    def _compare_sizes(self, record: Record, func: OpOverload, args: tuple, kwargs: dict[str, object]) -> None:
        """An argument that states how long an axis is (how many groups, say) must follow it."""
        if not record.literals:
            return
        names, _ = signature(func)
        for name, axis in record.literals.items():
            if name in names and name in signature(record.func)[0]:
                given = kwargs.get(name, args[names.index(name)] if names.index(name) < len(args) else None)
                if type(given) is int and given >= 0 and given != self.slicing.size(axis):
                    self._differ(f"its {name} does not follow: expected {self.slicing.size(axis)}, got {given}")

    def _left_of(self, value: Value, numbers: Sequence[object]) -> list[object]:
        """What is left of a constant where units of its axes are removed."""
        whole = np.array(numbers, dtype=object).reshape([axis.size for axis in value.axes])
        left: list[object] = whole[np.ix_(*map(self.slicing.remain, value.axes))].flatten().tolist()
        return left

    def _compare_strides(self, record: Record, tensor: torch.Tensor) -> None:
        """A tensor that lay without gaps in the memory of the dense one's operand must do so in that of the cut one."""
        args, kwargs = record.template
        stated = [axis.size for axis in record.outputs[0].axes]
        if self.slicing.narrowed(record.outputs[0].axes) and _dense(stated) == list(kwargs.get("stride", args[2])):
            strides = list(tensor.stride())
            if strides != _dense(tensor.shape):
                self._differ(f"its strides do not follow: expected {_dense(tensor.shape)}, got {strides}")

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
                self._differ("it takes a position that is removed")
            if now.get(dim) != expected:
                self._differ(f"it takes positions {_short(now.get(dim))}, and what is left is at {_short(expected)}")

    def _differ(self, text: str, is_number: bool = False) -> NoReturn:
        raise Differs(Failure(self.place, text, self.stack.paths[-1], self.source(), is_number))


class AtOtherSizes(Following):
    """Compares the calls of a cut module on inputs that are larger than those which the tape was recorded on.

    It has to make the same calls, with the same tensors of the module, and to cut these at the same positions. Axes of
    units are as long as promised, and so is all that no data of the inputs enters; other axes of constants may be
    longer, where their length follows from the inputs'. A length that is stated in a call may have been computed from a
    pruned size: such must have occurred before. An axis of units and of constants (what a flatten makes of channels and
    of a pooled image) has to be as long as promised too. Where these constants are a size of the inputs it cannot be:
    ValueError.

    inputs: of each dimension of the inputs, its length on the tape and here.
    """

    def __init__(self, promised: Promised, inputs: set[tuple[int, int]]) -> None:
        super().__init__(promised, False)
        self._met = inputs
        exact = once_each(lambda axis: (self.slicing.size(axis), self.slicing.size(axis)))
        data = once_each(lambda axis: exact(axis) if _stays_as_long(axis) else (axis.size, _ANY))
        self._lengths: list[list[tuple[tuple[int, int], ...]]] = []
        for record in self.tape:
            static = record.inputs and not any([value.from_inputs for value in record.inputs])
            limits = exact if static else data
            self._lengths.append([tuple(map(limits, value.axes)) for value in record.outputs])

    @property
    def is_done(self) -> bool:
        """Whether all calls of the tape were made."""
        return all(record.func in COPIES for record in self.tape[self.place :])

    def _same_call(self, func: OpOverload, operands: list[torch.Tensor], got: Shapes) -> int | None:
        record = self._at_place()
        if record is None or record.func is not func:
            if func in COPIES:
                return None
            while record is not None and record.func in COPIES:
                self.place += 1
                record = self._at_place()
        if record is None or not _alike(record.func, func) or not _fit(self._lengths[self.place], got):
            self._differ("another call is made at another size of the inputs")
        return self.place

    def _at_place(self) -> Record | None:
        return self.tape[self.place] if self.place < len(self.tape) else None

    def _compare(self, record, func, args, kwargs, operands, outputs) -> None:
        super()._compare(record, func, args, kwargs, operands, outputs)
        met = self._met
        for value, tensor, limits in zip(record.outputs, outputs, self._lengths[self.place], strict=True):
            sizes = enumerate(zip(limits, tensor.shape, strict=True))
            new = {dim: (least, n) for dim, ((least, _), n) in sizes if least < n and (least, n) not in met}
            if not new:
                continue
            if not self._says_the_same(record, args, kwargs):
                unmet = set(new)
                if func in VIEWS:
                    before, after = ([axis.size for axis in v.axes] for v in (record.inputs[0], value))
                    unmet -= {right[0] for _, right in segments(before, after) if len(right) == 1}
                if unmet:
                    self._differ("a length is stated that the inputs do not tell")
            met.update(new.values())

    def _says_the_same(self, record: Record, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether a call is given what the call of the tape was, its tensors aside; what counts units as cut."""
        names, _ = signature(record.func)
        before, given = ({**dict(zip(names, a, strict=False)), **k} for a, k in (record.template, (args, kwargs)))
        before |= {name: self.slicing.size(axis) for name, axis in record.literals.items() if name in before}
        return bool(without_tensors(before) == without_tensors(given))

    def _compare_positions(self, record, func, args, kwargs, operands) -> None:
        super()._compare_positions(record, func, args, kwargs, operands)
        known = [getattr(tensor, ATTRIBUTE, None) for tensor in operands]
        moves = record.func in CUTS and cut_at(record.func, record.template[0]) != cut_at(record.func, args)
        if owned(known) != owned(record.inputs) or (moves and cuts_units(record)):
            self._differ("a call takes something else at another size of the inputs")


def without_tensors(value: Any) -> Any:
    """The arguments of a call with None for each tensor, or for what stands for one on the tape."""
    if isinstance(value, (torch.Tensor, Slot)):
        return None
    if isinstance(value, (list, tuple)):
        return [without_tensors(item) for item in value]
    return {k: without_tensors(v) for k, v in value.items()} if isinstance(value, dict) else value


def owned(values: Sequence[Value | None]) -> tuple[str, ...]:
    """The names of the operands that belong to the module; of others, and of unknown ones, there are none."""
    return tuple([value.label if value is not None and _is_own(value) else "" for value in values])


def _is_own(value: Value) -> bool:
    return value.label in value.parameters and len(value.parameters) == 1


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


def _stays_as_long(axis: Axis) -> bool:
    """Whether an axis has units. Raises ValueError where a size of the inputs lengthens it nevertheless."""
    if not leaves(axis):
        return False
    if any(constant.reason is not None and constant.reason.text == OF_INPUTS for constant in _constants_in(axis)):
        raise ValueError("its length depends on units and on a size of the inputs")
    return True


def _constants_in(axis: Axis) -> Iterator[Constant]:
    """The constants that an axis is made of."""
    if isinstance(axis, Constant):
        yield axis
    elif isinstance(axis, (Sum, Product)):
        for part in axis.terms if isinstance(axis, Sum) else axis.factors:
            yield from _constants_in(part)


def _fit(lengths: Sequence[tuple[tuple[int, int], ...]], got: Shapes) -> bool:
    """Whether every size lies between the least and the most that it may be."""
    if len(lengths) != len(got):
        return False
    for known, shape in zip(lengths, got, strict=True):
        if len(known) != len(shape):
            return False
        for (least, most), size in zip(known, shape, strict=True):
            if not least <= size <= most:
                return False
    return True


def _dense(shape: Sequence[int]) -> list[int]:
    """The strides of a tensor of this shape that lies in memory row by row."""
    return list(itertools.accumulate(reversed(shape[1:]), operator.mul, initial=1))[::-1]


def _equal(old: object, new: object) -> bool:
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


def _scalars(func: OpOverload, args: tuple, kwargs: dict[str, object]) -> list[int | float | None]:
    """The arguments of a call that are numbers to compute with, and no sizes; None for those that are tensors."""
    found, count = list[int | float | None](), len(args)
    for place, name in _places_of_numbers(func):
        actual = args[place] if place < count else kwargs.get(name)
        found.append(actual if isinstance(actual, (int, float)) else None)
    return found


@cache
def _places_of_numbers(func: OpOverload) -> list[tuple[int, str]]:
    kinds = [str(formal.type).removeprefix("Optional[") for formal in schema_of(func).arguments]
    return [
        (place, formal.name)
        for place, (formal, kind) in enumerate(zip(schema_of(func).arguments, kinds, strict=True))
        if kind.startswith(("number", "float", "Tensor"))
    ]
