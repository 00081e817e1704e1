"""Compares the calls of a cut module at other sizes of its inputs with what the axes of the dense one promise."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from passes.analysis.tape import once_each
from passes.axes.expressions import Axis, Constant, Product, Sum, leaves
from passes.ops import Record, Value
from passes.ops.call import signature
from passes.ops.facts import COPIES, VIEWS
from passes.ops.views import segments
from passes.process.torch_private import OpOverload
from passes.stream.inference import ATTRIBUTE
from passes.stream.module_run import OF_INPUTS
from passes.trial.following import (
    CUTS,
    Following,
    Promised,
    Shapes,
    are_alike,
    cut_at,
    cuts_units,
    own_name,
    without_tensors,
)

_ANY = sys.maxsize  # a length that inputs may give


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
            self._lengths.append(
                [
                    # Of a constant it takes less than to look up what is known.
                    tuple([(a.size, a.size if static else _ANY) if type(a) is Constant else limits(a) for a in v.axes])
                    for v in record.outputs
                ]
            )

    @property
    def is_done(self) -> bool:
        """Whether all calls of the tape were made."""
        return all(record.func in COPIES for record in self.tape[self.place :])

    def _same_call(self, func: OpOverload, operands: list[torch.Tensor], got: Shapes) -> int | None:
        record = self._at_place()
        if record is not None and record.func is func and _fit(self._lengths[self.place], got):
            return self.place
        if record is None or record.func is not func:
            if func in COPIES:
                return None
            while record is not None and record.func in COPIES:
                self.place += 1
                record = self._at_place()
        if record is None or not are_alike(record.func, func) or not _fit(self._lengths[self.place], got):
            self.differ("another call is made at another size of the inputs")
        return self.place

    def _at_place(self) -> Record | None:
        return self.tape[self.place] if self.place < len(self.tape) else None

    def _compare(self, record, func, args, kwargs, operands, outputs) -> None:
        super()._compare(record, func, args, kwargs, operands, outputs)
        met = self._met
        for value, tensor, limits in zip(record.outputs, outputs, self._lengths[self.place], strict=True):
            new: dict[int, tuple[int, int]] = {}
            for dim, ((least, _), size) in enumerate(zip(limits, tensor.shape, strict=True)):
                if least < size and (least, size) not in met:
                    new[dim] = least, size
            if not new:
                continue
            if not self._says_the_same(record, args, kwargs):
                unmet = set(new)
                if func in VIEWS:
                    before, after = ([axis.size for axis in v.axes] for v in (record.inputs[0], value))
                    unmet -= {right[0] for _, right in segments(before, after) if len(right) == 1}
                if unmet:
                    self.differ("a length is stated that the inputs do not tell")
            met.update(new.values())

    def _says_the_same(self, record: Record, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether a call is given what the call of the tape was, its tensors aside; what counts units as cut."""
        names, _ = signature(record.func)
        before, given = ({**dict(zip(names, a, strict=False)), **k} for a, k in (record.template, (args, kwargs)))
        before |= {name: self.slicing.size(axis) for name, axis in record.literals.items() if name in before}
        return bool(without_tensors(before) == without_tensors(given))

    def _compare_positions(self, record, func, args, kwargs, operands) -> None:
        super()._compare_positions(record, func, args, kwargs, operands)
        moves = record.func in CUTS and cut_at(record.func, record.template[0]) != cut_at(record.func, args)
        if not _take_the_same(operands, record.inputs) or (moves and cuts_units(record)):
            self.differ("a call takes something else at another size of the inputs")


def _take_the_same(operands: Sequence[torch.Tensor], before: Sequence[Value]) -> bool:
    """Whether those operands of a call that belong to the module are the same as in the call of the tape."""
    if len(operands) != len(before):
        return False
    for tensor, value in zip(operands, before, strict=True):
        known = getattr(tensor, ATTRIBUTE, None)
        if known is not value and own_name(known) != own_name(value):
            return False
    return True


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
