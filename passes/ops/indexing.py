"""Operators that look positions up by tensors of indices."""

from __future__ import annotations

from passes.axes import Axis
from passes.ops.registry import Call, aten, rule

_PICKED = "positions of this axis are picked by an index"


@rule(aten.embedding)
def embedding(call: Call) -> list[list[Axis]]:
    """Rows of a table: its columns are carried."""
    rows, columns = call.axes("weight")
    call.freeze(rows, "rows of an embedding are picked by the input")
    return [[*call.axes("indices"), columns]]


@rule(aten._embedding_bag, aten._embedding_bag_forward_only)
def embedding_bag(call: Call) -> list[list[Axis]]:
    """Sums or means of rows of a table: its columns are carried."""
    rows, columns = call.axes("weight")
    call.freeze([rows, *call.axes("indices"), *call.axes("offsets")], "rows of an embedding are picked by the input")
    return [[call.fixed()[0], columns]]


@rule(aten.index_select)
def index_select(call: Call) -> list[list[Axis]]:
    """Positions of one dimension picked by a list."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes) if axes else 0
    call.freeze([*axes[dim : dim + 1], *call.axes("index")], _PICKED)
    return [[*axes[:dim], *call.fixed()[dim : dim + 1], *axes[dim + 1 :]]]


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: Call) -> list[list[Axis]]:
    """Advanced indexing: indexed dimensions are replaced by those of the indices, the others are carried."""
    axes, indices = call.axes("self"), call["indices"]
    picked = [d for d, i in enumerate(indices) if i is not None]
    call.freeze([axes[d] for d in picked], _PICKED)
    if any(indices[d].dtype.is_floating_point or not _is_integer(indices[d]) for d in picked):
        call.freeze(axes, "positions are picked by a mask")
        return [call.fixed()]
    for d in picked:
        call.freeze(call.axes(indices[d]), "values of this axis are used as an index")
    others = [axis for d, axis in enumerate(axes) if d not in picked]
    made = len(call.outputs[0].shape) - len(others)
    adjacent = picked == list(range(picked[0], picked[0] + len(picked)))
    at = picked[0] if adjacent else 0
    return [[*others[:at], *call.fixed()[at : at + made], *others[at:]]]


def _is_integer(tensor) -> bool:
    return tensor.dtype not in (tensor.new_empty(0).bool().dtype,) and tensor.dtype.itemsize >= 2


@rule(aten.gather)
def gather(call: Call) -> list[list[Axis]]:
    """Positions along one dimension picked for each place apart."""
    axes, indices = call.axes("self"), call.axes("index")
    dim = call["dim"] % len(axes) if axes else 0
    for d, (axis, other) in enumerate(zip(axes, indices, strict=True)):
        if d == dim or axis.size != other.size:
            call.freeze([axis, other], _PICKED)
        else:
            call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in indices]]
