"""Operators that make tensors from sizes."""

from __future__ import annotations

from passes.axes.expressions import Axis
from passes.ops.registry import Call, aten, rule
from passes.ops.zeros import ALWAYS, CARRIED, NEVER


@rule(
    aten.ones, aten.full, aten.empty, aten.new_ones, aten.new_full, aten.new_empty, aten.empty_strided,
    aten.new_empty_strided, zeros=NEVER,
)  # fmt: skip
def alike(call: Call) -> list[list[Axis]]:
    """Alike positions along every dimension, whose numbers are literals of the program."""
    return [[call.fresh(axis.size) for axis in call.fixed()]]


rule(aten.zeros, aten.new_zeros, zeros=ALWAYS)(alike)


@rule(
    aten.arange, aten.linspace, aten.logspace, aten.eye, aten.scalar_tensor, aten.randn, aten.rand, aten.randint,
    aten.randperm, aten.tril_indices, aten.triu_indices, zeros=NEVER,
)  # fmt: skip
def positional(call: Call) -> list[list[Axis]]:
    """Values that depend on their position: all of them stay."""
    return [call.fixed()]


@rule(aten.tril, aten.triu, zeros=CARRIED)
def triangle(call: Call) -> list[list[Axis]]:
    """A triangle of the last two dimensions."""
    axes = call.axes("self")
    call.freeze(axes[-2:], "a triangle is cut along this axis")
    return [[call.space.resolve(axis) for axis in axes]]
