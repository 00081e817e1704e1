"""Operators that look positions up by tensors of indices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from passes.axes.expressions import Axis
from passes.ops.call import Call, aten, listed
from passes.ops.literals import Site, moved_slice, picked, placed, renumbered
from passes.ops.meta_shapes import Shape, shaped
from passes.ops.table import NumbersOf, Picked, rule, states
from passes.ops.zeros import CARRIED, NEVER, Zeros, taken

_PICKED = "positions of this axis are picked by an index"


def _brackets(site: Site) -> None:
    """x[...] and x[...] = y: slice bounds and positions move by what was removed before them."""
    axes = site.input
    if axes is None:
        return
    index = site.node.args[1]
    items: list[object] = list(index) if isinstance(index, tuple) else [index]
    taken = sum(1 for i in items if i is not None and i is not Ellipsis)
    dim = 0
    result: list[Any] = []
    for item in items:
        if item is Ellipsis:
            dim += len(axes) - taken
        elif item is not None:
            if isinstance(item, slice):
                item = moved_slice(site, axes[dim], item)
            elif isinstance(item, list) or site.numbers_of(item) is not None:
                item = renumbered(site, axes[dim], item)
            else:
                item = site.moved(item, partial(placed, site, axes[dim]))
            dim += 1
        result.append(item)
    site.node.update_arg(1, tuple(result) if isinstance(index, tuple) else result[0])


def _index_select(site: Site) -> None:
    """A list in place of the index, which only square brackets take."""
    dim, index = site.argument(1, "dim"), site.argument(2, "index")
    assert site.input is not None
    picked(site, dim % len(site.input), index)


def _aten_index(site: Site) -> None:
    indices = list(site.argument(1, "indices"))
    given = [dim for dim, index in enumerate(indices) if index is not None]
    if len(given) == 1:
        picked(site, given[0], indices[given[0]])


def _taken_listed(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked | None:
    dim = given["dim"] % len(shape)
    places = listed(index_of(given["index"]), shape[dim])
    return None if places is None else {dim: places}


def _taken_indexed(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked | None:
    dims = [dim for dim, index in enumerate(given["indices"]) if index is not None]
    if len(dims) != 1:
        return None
    places = listed(index_of(given["indices"][dims[0]]), shape[dims[0]])
    return None if places is None else {dims[0]: places}


@rule(aten.embedding, zeros=taken("weight"), roles={"weight": "output"})
def embedding(call: Call) -> list[list[Axis]]:
    """Rows of a table: its columns are carried."""
    rows, columns = call.axes("weight")
    call.freeze(rows, "rows of an embedding are picked by the input")
    return [[*call.axes("indices"), columns]]


@rule(aten._embedding_bag, aten._embedding_bag_forward_only, zeros=taken("weight"), roles={"weight": "output"})
def embedding_bag(call: Call) -> list[list[Axis]]:
    """Sums or means of rows of a table: its columns are carried."""
    rows, columns = call.axes("weight")
    call.freeze([rows, *call.axes("indices"), *call.axes("offsets")], "rows of an embedding are picked by the input")
    return [[call.fixed()[0], columns]]


@rule(aten.index_select, zeros=taken("self"), literals=_index_select, picks=_taken_listed, places="read")
def index_select(call: Call) -> list[list[Axis]]:
    """Positions of one dimension picked by a list."""
    axes = call.axes("self")
    _keep_places(call)
    dim = call["dim"] % len(axes) if axes else 0
    if axes:
        if _looked_up(call, axes[dim], call["index"]):
            return [[*axes[:dim], *call.axes("index"), *axes[dim + 1 :]]]
        picked = _stated(call, axes[dim], call["index"])
        if picked is not None:
            axes[dim] = picked
            return [[call.space.resolve(axis) for axis in axes]]
    call.freeze([*axes[dim : dim + 1], *call.axes("index")], _PICKED)
    return [[*axes[:dim], *call.fixed()[dim : dim + 1], *axes[dim + 1 :]]]


def _looked_up(call: Call, axis: Axis, index: torch.Tensor) -> bool:
    """Whether `index` holds positions that were chosen, of which what stands on `axis` is taken."""
    places = call.places(index)
    if places is not None:
        call.look_up(axis, places)
    return places is not None


def _keep_places(call: Call) -> None:
    """Chosen positions, of which some are taken, remain positions."""
    places = call.places("self")
    if places is not None:
        call.watch(0, [places])


def _stated(call: Call, axis: Axis, index: torch.Tensor) -> Axis | None:
    """What an index picks of `axis`, where the program states its numbers: an order of channels, or some of them."""
    order = call.positions(index, axis.size)
    picked = None if order is None else call.pick(axis, order, _PICKED)
    if picked is not None:
        call.freeze(call.axes(index), "values of this axis are used as an index")
    return picked


def _listed_first(first: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Shape | None:
    """One list of positions along the first dimension."""
    listed = indices[0] if len(indices) == 1 else None
    if listed is None or listed.dim() != 1 or listed.dtype is not torch.int64 or not listed.is_meta:
        return None
    if not first.dim() or not first.numel():
        return None
    return (len(listed), *first.shape[1:])


@rule(
    aten.index.Tensor, aten._unsafe_index.Tensor, zeros=taken("self"), literals=_aten_index, picks=_taken_indexed,
    places="read", meta=shaped(_listed_first),
)  # fmt: skip
def index(call: Call) -> list[list[Axis]]:
    """Advanced indexing: indexed dimensions are replaced by those of the indices, the others are carried."""
    axes, indices = call.axes("self"), call["indices"]
    _keep_places(call)
    picked = [d for d, i in enumerate(indices) if i is not None]
    if len(picked) == 1:
        found = _stated(call, axes[picked[0]], indices[picked[0]])
        if found is not None:
            axes[picked[0]] = found
            return [[call.space.resolve(axis) for axis in axes]]
    call.freeze([axes[d] for d in picked if not _looked_up(call, axes[d], indices[d])], _PICKED)
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


def _is_integer(tensor: torch.Tensor) -> bool:
    return tensor.dtype not in (tensor.new_empty(0).bool().dtype,) and tensor.dtype.itemsize >= 2


@rule(aten.gather, zeros=taken("self"), places="read")
def gather(call: Call) -> list[list[Axis]]:
    """Positions along one dimension picked for each place apart."""
    axes, indices = call.axes("self"), call.axes("index")
    _keep_places(call)
    dim = call["dim"] % len(axes) if axes else 0
    for d, (axis, other) in enumerate(zip(axes, indices, strict=True)):
        if d == dim and _looked_up(call, axis, call["index"]):
            call.freeze(other, _PICKED)
        elif d == dim or axis.size != other.size:
            call.freeze([axis, other], _PICKED)
        else:
            call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in indices]]


@rule(aten.scatter, aten.scatter_add, aten.scatter_reduce, zeros=NEVER, places="read")
def scatter(call: Call) -> list[list[Axis]]:
    """Values written along one dimension at places that are computed for each place apart."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes) if axes else 0
    written = [call[name] for name in ("index", "src") if isinstance(call.get(name), torch.Tensor)]
    call.freeze_places(*(tensor for tensor in call.tensors if tensor is not call["index"]))
    for d, axis in enumerate(axes):
        others = [call.axes(t)[d] for t in written]
        if d == dim and _looked_up(call, axis, call["index"]):
            call.freeze(others, "values are written at computed places of this axis")
        elif d == dim or any(other.size != axis.size for other in others):
            call.freeze([axis, *others], "values are written at computed places of this axis")
        else:
            for other in others:
                call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in axes]]


@rule(aten.index_put, aten._unsafe_index_put, zeros=NEVER)
def index_put(call: Call) -> list[list[Axis]]:
    """One number written where flags say, position by position; or values at the places that indices name."""
    axes, values, at = call.axes("self"), call.axes("values"), 0
    many = any(axis.size != 1 for axis in values)
    for index in call["indices"]:
        if index is None:
            at += 1
            continue
        flags = not _is_integer(index)
        for axis, own in zip(axes[at:], call.axes(index) if flags else [axes[at]], strict=False):
            if flags and not many:
                call.tie(axis, own)
            else:
                call.freeze(axis, "values are written at listed places of this axis")
        if not flags or many:
            call.freeze(call.axes(index), "values are written at listed places of this axis")
        at += index.dim() if flags else 1
    for axis, value in zip(reversed(axes), reversed(values), strict=False):
        if axis.size == value.size != 1:
            call.tie(axis, value)
        else:
            call.freeze(value, "values are written at listed places")
    return [[call.space.resolve(axis) for axis in axes]]


_OF_BOTH = Zeros(lambda unit: unit.zero("self") and unit.zero("source"), CARRIED.summed)


@rule(aten.masked_scatter, zeros=_OF_BOTH)
def masked_scatter(call: Call) -> list[list[Axis]]:
    """Values written one after the other where flags say: whole rows, where flags are expanded along the last axis.

    So embeddings of images enter those of a text.
    """
    axes, flags, source = call.axes("self"), call.axes("mask"), call.axes("source")
    places, why = call["mask"], "values are written one after the other"
    rows = bool(axes and flags and source) and axes[-1].size == source[-1].size
    rows = rows and (places.shape[-1] == 1 or places.stride(-1) == 0)
    call.freeze([*axes[:-1], *flags[:-1], *source[:-1]], why)
    if rows:
        call.tie(axes[-1], source[-1])
        if flags[-1].size == axes[-1].size:
            call.tie(axes[-1], flags[-1])
    else:
        call.freeze([*axes[-1:], *flags[-1:], *source[-1:]], why)
    return [[call.space.resolve(axis) for axis in axes]]


@rule(aten.index_add, aten.index_copy, aten.index_fill, aten.index_reduce, zeros=NEVER)
def index_write(call: Call) -> list[list[Axis]]:
    """Slices written at the places of one dimension that a list names."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes) if axes else 0
    call.freeze([*axes[dim : dim + 1], *call.axes("index")], "values are written at listed places of this axis")
    source = call.get("source")
    if isinstance(source, torch.Tensor) and source.dim() == len(axes):
        for d, (axis, other) in enumerate(zip(axes, call.axes(source), strict=True)):
            if d == dim:
                call.freeze(other, "values are written at listed places of this axis")
            else:
                call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in axes]]


states(operator.getitem, literals=_brackets)
states(operator.setitem, literals=_brackets, values=("c",))
