"""Operators that make tensors from sizes."""

from __future__ import annotations

import torch

from passes.axes.expressions import Axis
from passes.ops.call import Call, aten
from passes.ops.literals import sizes_from
from passes.ops.meta_shapes import empty_on_meta
from passes.ops.table import rule, states
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


def _number(
    number: object,
    dtype: torch.dtype | None = None,
    layout: object = torch.strided,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> torch.Tensor | None:
    """A number on the meta device."""
    if dtype is None or layout is not torch.strided or device is None or device.type != "meta" or pin_memory:
        return None
    return empty_on_meta((), dtype)


states(aten.scalar_tensor, meta=_number)


@rule(aten.tril, aten.triu, zeros=CARRIED)
def triangle(call: Call) -> list[list[Axis]]:
    """A triangle of the last two dimensions."""
    axes = call.axes("self")
    call.freeze(axes[-2:], "a triangle is cut along this axis")
    return [[call.space.resolve(axis) for axis in axes]]


states(aten.zeros, aten.ones, aten.empty, literals=sizes_from(0))
states(aten.full, literals=sizes_from(0), values=("fill_value",))
states(aten.new_zeros, aten.new_ones, aten.new_empty, literals=sizes_from(1))
states(aten.new_full, literals=sizes_from(1), values=("fill_value",))
states(aten.empty, aten.new_empty, aten.empty_strided, aten.new_empty_strided, aten.empty_permuted, undetermined=True)
