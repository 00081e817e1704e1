"""Operators that reduce or scan an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from passes.axes.expressions import ONE, Axis
from passes.ops.call import Call, aten
from passes.ops.meta_shapes import Shape, always, shaped
from passes.ops.references import Masked
from passes.ops.table import rule, states
from passes.ops.zeros import CARRIED, FIRST, NEVER

SCANNED = "every position depends on the others along this axis"


def dims_of(call: Call, rank: int) -> list[int]:
    """The dimensions that the call reduces; all of them where it names none."""
    dim = call.get("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim])] if rank else []


def reduced(call: Call) -> tuple[list[Axis], list[Axis]]:
    """The axes that are reduced, and the axes of the result."""
    axes = call.axes(call.tensors[0])
    dims = dims_of(call, len(axes))
    keep = bool(call.get("keepdim"))
    result = [ONE if d in dims else axis for d, axis in enumerate(axes) if keep or d not in dims]
    return [axes[d] for d in dims], result


def _mean(x: torch.Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shape | None:
    if not dim or dtype is not None or any(not -x.dim() <= d < x.dim() for d in dim):
        return None
    gone = {d % x.dim() for d in dim}
    if len(gone) < len(dim):
        return None
    return [1 if d in gone else size for d, size in enumerate(x.shape) if keepdim or d not in gone]


def _norm(
    x: torch.Tensor, order: float = 2, dim: object = None, keepdim: bool = False, dtype: object = None
) -> Shape | None:
    return _mean(x, dim, keepdim, dtype)


def _softmax(x: torch.Tensor, dim: int, to: object = None) -> Shape | None:
    """`to`: whether, or to which type, the result is converted."""
    return None if to or not -x.dim() <= dim < x.dim() else tuple(x.shape)


@rule(aten.sum, aten.nansum, aten.linalg_vector_norm, aten.norm, aten.count_nonzero, zeros=CARRIED)
def contract(call: Call) -> list[list[Axis]]:
    """A zeroed unit adds nothing."""
    gone, result = reduced(call)
    order = call.get("ord", "p")
    if order is not None and order < 0:
        call.freeze(gone, "a norm of negative order asks for the smallest along this axis")
    call.contract(*gone)
    return [result] * len(call.outputs)


@rule(
    aten.mean, aten.amax, aten.amin, aten.prod, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.any, aten.all,
    aten.aminmax, aten.max.default, aten.min.default, zeros=CARRIED, reference=Masked.without_removed,
)  # fmt: skip
def mix(call: Call) -> list[list[Axis]]:
    """A statistic over the units that are there."""
    gone, result = reduced(call)
    call.mix(gone)
    return [result] * len(call.outputs)


rule(aten.logsumexp, zeros=NEVER, reference=Masked.without_removed)(mix)
states(aten.sum, aten.mean, aten.amax, aten.amin, sizeless=True)
states(aten.mean.dim, meta=shaped(_mean, any_layout=always))
states(aten.linalg_vector_norm, meta=shaped(_norm, any_layout=always))


@rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.mode, zeros=FIRST, reference=Masked.chosen)
def mix_and_index(call: Call) -> list[list[Axis]]:
    """A statistic, and where it was found: the second output speaks of positions, so its use freezes them."""
    gone, result = reduced(call)
    call.mix(gone)
    call.watch(1, gone)
    return [result, result]


@rule(aten.cumprod, aten.cummax, aten.cummin, zeros=FIRST)
def scan(call: Call) -> list[list[Axis]]:
    """Every position depends on the others of its axis, whose number and order therefore stay."""
    axes = call.axes("self")
    for dim in dims_of(call, len(axes)):
        call.freeze(axes[dim], SCANNED)
    return [[call.space.resolve(axis) for axis in axes]] * len(call.outputs)


rule(aten._log_softmax, aten.logcumsumexp, aten._safe_softmax, zeros=NEVER)(scan)


@rule(aten._softmax, zeros=NEVER, reference=Masked.among_surviving)
def softmax(call: Call) -> list[list[Axis]]:
    """Shares of a whole: those of experts are taken among the experts that stay, other axes stay."""
    return _scanned(call)


@rule(aten.cumsum, zeros=FIRST, reference=Masked.of_surviving)
def cumsum(call: Call) -> list[list[Axis]]:
    """Sums so far: of experts over those that stay, other axes stay."""
    return _scanned(call)


def _scanned(call: Call) -> list[list[Axis]]:
    axes = call.axes("self")
    for dim in dims_of(call, len(axes)):
        call.mix_if_routed(axes[dim], SCANNED)
    return [axes]


@rule(aten.sort, zeros=FIRST, places="read")
def sort(call: Call) -> Sequence[Sequence[Axis]]:
    """An order by value, and where each was; positions that are sorted remain positions."""
    places = call.places("self")
    if places is not None:
        call.watch(0, [places])
    return scan(call)


states(aten._softmax, aten._safe_softmax, meta=shaped(_softmax))
states(aten._softmax, sizeless=True)


@rule(aten.kthvalue, zeros=FIRST)
def kth(call: Call) -> list[list[Axis]]:
    """One position chosen by its value."""
    axes = call.axes("self")
    dims = dims_of(call, len(axes))
    call.freeze([axes[d] for d in dims], "positions are chosen by value along this axis")
    fixed = call.fixed()
    if len(fixed) != len(axes):
        return [[axis for d, axis in enumerate(axes) if d not in dims]] * 2
    return [[fixed[d] if d in dims else axis for d, axis in enumerate(axes)]] * 2
