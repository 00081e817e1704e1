"""Which units of parameters a run used: what no operator reads together with data of the inputs stays.

A table of learned positions of which an input uses as many as it is long, an auxiliary head that evaluation mode skips:
removing what one run did not use would break another. Such positions stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from passes.axes.expressions import Axis, Constant, Reason, Variable, constants, leaves
from passes.ops import Record


def variables_used(records: Sequence[Record]) -> set[Variable]:
    """The variables of all operands of the calls into which data of the inputs enters.

    Of calls on parameters alone whose results enter such a call, also those that they sum over, unless to a single
    number: a sum of a whole parameter that is added as zero only shows it to what looks for unused ones.
    """
    used: set[Variable] = set()
    needed: set[int] = set()
    for record in reversed(records):
        if any([value.from_inputs for value in record.inputs]):
            for value in record.inputs:
                if value.key not in needed:
                    needed.add(value.key)
                    for axis in value.axes:
                        if type(axis) is not Constant:  # which most of them are
                            used.update(leaves(axis))
        elif any(value.key in needed for value in record.outputs):
            needed.update(value.key for value in record.inputs)
            alone = not any(value.axes for value in record.outputs)
            for axis in () if alone else (*record.contracted, *record.mixed):
                used.update(leaves(axis))
    return used


def unused_axes(
    tensors: Mapping[str, tuple[Axis, ...]], trainable: Iterable[str], records: Sequence[Record]
) -> Iterator[tuple[Axis, Reason]]:
    """Each axis of a parameter of which some units were not used, and why they stay."""
    used = variables_used(records)
    for name in trainable:
        for dim, axis in enumerate(tensors.get(name, ())):
            here = set(leaves(axis))
            unread = here - used
            if not unread:
                continue
            partly = bool(here & used) or any(True for _ in constants(axis))
            text = (
                f"this run did not use all positions of {name}, dimension {dim}; another length or size may"
                if partly
                else f"{name} was not used in this run"
            )
            for variable in unread:
                yield variable, Reason(text, name)
