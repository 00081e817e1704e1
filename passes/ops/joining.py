"""Operators that put axes one after another: concatenation, stacking, padding."""

from __future__ import annotations

from passes.axes.expressions import Axis, concat
from passes.ops.registry import Call, aten, rule
from passes.ops.zeros import CARRIED, Unit, Zeros


def _padded(unit: Unit) -> bool:
    """Zeros, where it pads with these; of a unit that the padding makes no operand says otherwise."""
    return not unit.argument("value") and all(unit.zeros())


_PADDED = Zeros(_padded, _padded)


@rule(aten.cat, zeros=CARRIED)
def cat(call: Call) -> list[list[Axis]]:
    """A sum of the operands' axes; the other dimensions are the same."""
    parts = [call.axes(t) for t in call["tensors"] if tuple(t.shape) != (0,)]
    dim = call["dim"] % len(parts[0])
    result = list(parts[0])
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            if number != dim:
                call.tie(result[number], axis)
    result[dim] = concat([axes[dim] for axes in parts])
    return [[call.space.resolve(axis) for axis in result]]


@rule(aten.stack, zeros=CARRIED)
def stack(call: Call) -> list[list[Axis]]:
    """A new dimension, one position an operand; the operands' dimensions are the same."""
    parts = [call.axes(t) for t in call["tensors"]]
    result = list(parts[0])
    for axes in parts[1:]:
        for number, axis in enumerate(axes):
            call.tie(result[number], axis)
    fixed = call.fixed()
    dim = call["dim"] % len(fixed)
    result = [call.space.resolve(axis) for axis in result]
    return [result[:dim] + [fixed[dim]] + result[dim:]]


@rule(aten.constant_pad_nd, zeros=_PADDED)
def constant_pad(call: Call) -> list[list[Axis]]:
    """New units before and after an axis, whose numbers are literals of the program; negative padding cuts."""
    axes, pad = call.axes("self"), call["pad"]
    for number in range(len(pad) // 2):
        dim, (before, after) = len(axes) - 1 - number, pad[2 * number : 2 * number + 2]
        axis = axes[dim]
        axis = call.slice(axis, max(0, -before), axis.size - max(0, -after))
        axes[dim] = concat([call.fresh(max(0, before)), axis, call.fresh(max(0, after))])
    return [axes]
