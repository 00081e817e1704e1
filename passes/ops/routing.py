"""Operators of routers: positions chosen by value, and what a program makes of such positions before it looks them up.

A mixture of experts chooses some of an axis of experts for each token. A removed expert is never chosen: the masked
network chooses among the experts that stay, as if the logits of the others were minus infinity. Positions keep their
order when some are gone, so sorting, counting and comparing them is the same before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passes.axes.expressions import Axis, Constant, Sum, concat
from passes.ops.call import COMPUTED, Call, aten
from passes.ops.pointwise import broadcast, pointwise
from passes.ops.reduction import dims_of, reduced
from passes.ops.references import Masked
from passes.ops.table import rule, states
from passes.ops.zeros import EVALUATED, FIRST, NEVER

CHOSEN = "positions are chosen by value along this axis"


@rule(aten.topk, zeros=FIRST, reference=Masked.chosen)
def choose(call: Call) -> list[list[Axis]]:
    """Some positions chosen by their values, among those that stay."""
    axes = call.axes("self")
    for dim in dims_of(call, len(axes)):
        call.choose(axes[dim], int(call["k"]), CHOSEN)
        call.watch(1, [axes[dim]])
        axes[dim] = call.fixed()[dim]
    return [axes, axes]


@rule(aten.argmax, aten.argmin, zeros=NEVER, reference=Masked.chosen)
def choose_one(call: Call) -> list[list[Axis]]:
    """The position of the largest, or of the smallest."""
    gone, result = reduced(call)
    if call["dim"] is None:
        call.freeze(gone, COMPUTED)
    for axis in gone:
        call.choose(axis, 1, COMPUTED)
        call.watch(0, [axis])
    return [result]


@rule(aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, zeros=EVALUATED, sizeless=True, fuses=True, places="read")
def compare(call: Call) -> Sequence[Sequence[Axis]]:
    """Position by position; chosen positions with a number, with all positions in order, or with each other."""
    places, other = call.places("self"), call["other"]
    if places is None and (not isinstance(other, torch.Tensor) or call.places(other) is None):
        return pointwise(call)
    axes = [broadcast(call, call.tensors)]
    if places is not None and isinstance(other, int) and not isinstance(other, bool):
        _compared(call, places, other)
    elif places is not None and isinstance(other, torch.Tensor):
        dim = _counts_up(call, other, places.size)
        if dim is not None:
            axes[0][dim] = concat([places, Constant(other.numel() - places.size)])
            call.space.route(places)
            return axes
        if call.places(other) != places:
            call.freeze_places(call["self"], other)
    else:
        call.freeze_places(call["self"], other)
    return axes


def _compared(call: Call, places: Axis, number: int) -> None:
    """A number that stands for a position which always stays, or behind all of them, goes on standing there."""
    before, terms = list[Axis](), list(places.terms if isinstance(places, Sum) else [places])
    while terms and number >= terms[0].size:
        number -= terms[0].size
        before.append(terms.pop(0))
    if number < 0 or (terms and not isinstance(terms[0], Constant)):
        call.freeze(places, "positions of this axis are told apart by numbers of the program")
    elif before:
        call.record.lengths["other"] = concat(before), number


def _counts_up(call: Call, tensor: torch.Tensor, least: int) -> int | None:
    """The dimension from the end along which `tensor` is 0, 1, 2, ..., at least `least` of them; None for another."""
    numbers = call.numbers_of(tensor)
    if numbers is None or numbers.numel() < least or numbers.numel() != max(numbers.shape, default=0):
        return None
    if not torch.equal(numbers.flatten(), torch.arange(numbers.numel(), dtype=numbers.dtype)):
        return None
    dim = numbers.dim() - list(numbers.shape).index(numbers.numel())
    narrow = call["self"].dim() < dim or call["self"].shape[-dim] == 1  # each position beside all of them
    return -dim if narrow else None


@rule(aten.histc, zeros=NEVER, places="read")
def histogram(call: Call) -> list[list[Axis]]:
    """How many values lie in each of some intervals: of chosen positions, how often each was chosen."""
    places, count = call.places("self"), int(call["bins"])
    whole = (call["min"], call["max"]) == (0, count - 1)
    if places is None or count < places.size or not whole:
        call.freeze_places(call["self"])
        call.freeze(call.axes("self"), "values are counted along this axis")
        return [call.fixed()]
    call.record.lengths["max"] = places, count - places.size - 1
    return [_counted(call, places, count)]


@rule(aten.bincount, zeros=NEVER, places="read")
def bincount(call: Call) -> list[list[Axis]]:
    """How often each whole number is there."""
    places, count = call.places("self"), call.outputs[0].shape[0]
    if places is None or count != max(call["minlength"], places.size) or call["weights"] is not None:
        call.freeze_places(call["self"])
        call.freeze(call.axes("self"), "values are counted along this axis")
        return [call.fixed()]
    return [_counted(call, places, count)]


def _counted(call: Call, places: Axis, count: int) -> list[Axis]:
    call.space.route(places)
    return [concat([places, Constant(count - places.size)])]


@rule(aten.nonzero, zeros=NEVER)
def nonzero(call: Call) -> list[list[Axis]]:
    """The positions that are not zero."""
    axes = call.axes("self")
    if len(axes) == 1:
        call.space.freeze_unless_routed(axes[0], call.reason(COMPUTED))
        call.watch(0, axes)
    else:
        call.freeze(axes, COMPUTED)
    return [call.fixed()]


def one_hot(mode: object, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.one_hot` as torch computes it, without a look at the values whether they are in range."""
    positions, count = args[0], kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
    if count < 0:
        return func(*args, **kwargs)
    return positions.new_zeros((*positions.shape, count)).scatter_(-1, positions.unsqueeze(-1), 1)


_KEEP = (
    aten.view.default, aten._unsafe_view, aten.permute, aten.transpose, aten.t,
    aten.unsqueeze, aten.squeeze, aten.expand, aten.repeat, aten.clone, aten._to_copy, aten.alias, aten.detach,
    aten.slice.Tensor, aten.unbind, aten.split.Tensor, aten.split_with_sizes,
)  # fmt: skip
states(*_KEEP, places="kept")
_SHAPE_ALONE = (
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.empty_like,
)  # fmt: skip
states(*_SHAPE_ALONE, places="read")  # no values are
