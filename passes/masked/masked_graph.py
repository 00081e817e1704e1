"""The masked network: a dense one whose operators, where they mix or sum what is not zero, see what survives only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from passes.analysis.coupling import Coupling
from passes.axes.expressions import Variable, leaves
from passes.axes.index_sets import Mask
from passes.errors import EquivalenceError
from passes.masked.cleared import cleared_arguments
from passes.ops import Record, traits_of
from passes.ops.meta_shapes import LightMode
from passes.ops.references import Masked, narrowed


class OtherCalls(Exception):
    """A node makes other calls than on the example (a recurrent layer on a longer input): no record describes them."""


class MaskedOperators(LightMode):
    """Applies operators that mix, or sum what is not zero, to the surviving positions.

    removed_blocks: residual branches whose output is zero where it is added.
    """

    def __init__(self, coupling: Coupling, masks: Mapping[Variable, Mask], removed_blocks: Sequence[str] = ()) -> None:
        super().__init__()
        self.masks = masks
        branches = {block.sum: block.operand for block in (coupling.blocks[name] for name in removed_blocks)}
        self.branches = {id(coupling.structure.records[number]): operand for number, operand in branches.items()}
        self.special: dict[tuple[str, object], list[Record | None]] = defaultdict(list)
        for number, record in enumerate(coupling.structure.records):
            mixes = any(narrowed(a, masks) for a in record.mixed)
            sums = any(v in masks for v in coupling.unmasked.get(number, ()))
            self.special[record.node, record.func].append(record if mixes or sums or number in branches else None)
        self._counts: dict[tuple[str, object], tuple[int, bool]] = {}  # how many calls, and whether all are alike
        self._node = ""

    def enter(self, node: str) -> None:
        """Calls from here on belong to this node; "" when all have run. Raises OtherCalls."""
        for (name, func), (used, given) in self._counts.items():
            records = self.special[name, func]
            if used != len(records) and not given:
                raise OtherCalls(f"{name} calls {func} {used} times here, and {len(records)} times on the example")
        self._node, self._counts = node, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = (self._node, func)
        records = self.special.get(key)
        if records is None or all(record is None for record in records):
            return func(*args, **kwargs)
        used, alike = self._counts.get(key) or (0, _alike(records))
        self._counts[key] = used + 1, alike
        if used >= len(records) and not alike:
            raise OtherCalls(f"{self._node} calls {func} more often than on the example ({len(records)} times)")
        record = records[used % len(records)]
        if record is None:
            return func(*args, **kwargs)
        return self._masked(record, func, args, kwargs)

    def _masked(self, record: Record, func, args, kwargs):
        if id(record) in self.branches:
            return func(*with_zero(args, self.branches[id(record)]), **kwargs)
        if record.mixed and any(narrowed(a, self.masks) for a in record.mixed):
            reference = traits_of(func).reference
            if reference is None:
                raise EquivalenceError(
                    f"{func} mixes a pruned axis at {self._node}, and no reference says what it should give"
                )
            return reference(Masked(func, args, kwargs, record, self.masks))
        summed = {v for axis in record.contracted for v in leaves(axis)}
        args, kwargs = cleared_arguments(args, kwargs, record, self.masks, summed) or (args, kwargs)
        return func(*args, **kwargs)


def with_zero(args: tuple, operand: int) -> tuple:
    """The arguments of a call with zeros in the place of one, also in its memory where that is the first."""
    zero = args[operand].zero_() if operand == 0 else torch.zeros_like(args[operand])
    return *args[:operand], zero, *args[operand + 1 :]


def _alike(records: Sequence[Record | None]) -> bool:
    """Whether all calls of a node say the same of their axes: the steps of one recurrence do, however many."""
    described = [
        record and (record.mixed, record.contracted, [value.axes for value in record.inputs]) for record in records
    ]
    return all(other == described[0] for other in described)
