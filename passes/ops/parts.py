"""Operators that take positions of an axis or move them along it: slices, splits, single positions, rolls, flips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from passes.axes.expressions import Axis, Constant, concat, permute
from passes.ops.call import Call, Value, aten
from passes.ops.literals import Site, moved_slice, placed
from passes.ops.meta_shapes import Shape, shaped
from passes.ops.table import NumbersOf, Picked, rule, states
from passes.ops.zeros import CARRIED
from passes.process.torch_private import OpOverload


def _narrow(site: Site) -> None:
    assert site.input is not None
    dim, start, count = site.argument(1, "dim"), site.argument(2, "start"), site.argument(3, "length")
    axis = site.input[dim]
    if axis.size != site.new_size(axis) or site.shifted:
        begin = (site.dense(start) if isinstance(start, fx.Node) else start) % axis.size
        site.set(2, "start", site.moved(start, partial(placed, site, axis)))
        site.set(3, "length", site.moved(count, lambda i: site.before(axis, begin + i) - site.before(axis, begin)))


def _slice(site: Site) -> None:
    assert site.input is not None
    axis = site.input[site.argument(1, "dim", default=0)]
    given = slice(site.argument(2, "start"), site.argument(3, "end"), site.argument(4, "step", default=1))
    moved = moved_slice(site, axis, given)
    for position, name, value in ((2, "start", moved.start), (3, "end", moved.stop)):
        if site.argument(position, name) is not None:
            site.set(position, name, value)


def _position(site: Site) -> None:
    assert site.input is not None
    axis, index = site.input[site.argument(1, "dim")], site.argument(2, "index")
    site.set(2, "index", site.moved(index, partial(placed, site, axis)))


def _split(site: Site) -> None:
    """split, chunk and tensor_split become a split with stated sizes where the parts change."""
    dim = site.argument(2, "dim", default=0)
    parts = list(site.value)
    if not parts or not all(isinstance(p, Value) for p in parts):
        return
    old = [p.axes[dim].size for p in parts]
    new = [site.new_size(p.axes[dim]) for p in parts]
    if new == old and not site.shifted:
        return
    node = site.node
    node.args, node.kwargs = (node.args[0], new, dim), {}
    if node.op == "call_method":
        node.target = "split"
    elif isinstance(node.target, OpOverload):
        node.target = torch.ops.aten.split_with_sizes.default
    else:
        node.target = torch.split


def _roll(site: Site) -> None:
    shifts, dims = site.argument(1, "shifts"), site.argument(2, "dims")
    if dims is None or site.input is None:
        return
    many = isinstance(shifts, (list, tuple))
    listed, places = (
        (list(shifts), list(dims)) if many else ([shifts], [dims[0] if isinstance(dims, (list, tuple)) else dims])
    )
    for number, dim in enumerate(places):
        axis, shift = site.input[dim], listed[number]
        if isinstance(shift, int) and axis.size != site.new_size(axis):
            first = axis.size - shift % axis.size
            listed[number] = site.new_size(axis) - site.before(axis, first)
    site.set(1, "shifts", listed if many else listed[0])


def _taken_slice(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked:
    dim = given["dim"] % len(shape)
    return {dim: list(range(shape[dim]))[slice(given["start"], given["end"], given["step"])]}


def _taken_position(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked:
    dim = given["dim"] % len(shape)
    return {dim: [given["index"] % shape[dim]]}


def _taken_rolled(given: dict[str, Any], shape: list[int], index_of: NumbersOf) -> Picked:
    dims = [dim % len(shape) for dim in given["dims"]]
    pairs = zip(dims, given["shifts"], strict=False)
    return {dim: [(place - shift) % shape[dim] for place in range(shape[dim])] for dim, shift in pairs if shape[dim]}


def _rolled(x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Shape | None:
    fits = len(shifts) == len(dims) and all(-x.dim() <= d < x.dim() for d in dims)
    return tuple(x.shape) if fits else None


@rule(aten.select, zeros=CARRIED, literals=_position, picks=_taken_position, fuses=True, places="read")
def select(call: Call) -> list[list[Axis]]:
    """One position of an axis, which therefore stays."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    index = call["index"] % axes[dim].size
    places = call.places("self")
    if places is not None:
        call.watch(0, [places])
    if call.sought is not None and call.sought[1] == call["index"]:
        call.look_up(axes[dim], call.sought[0])
        call.sought = None
        return [axes[:dim] + axes[dim + 1 :]]
    call.slice(axes[dim], index, index + 1)
    return [axes[:dim] + axes[dim + 1 :]]


@rule(aten.slice.Tensor, zeros=CARRIED, literals=_slice, picks=_taken_slice, fuses=True)
def slice_axis(call: Call) -> list[list[Axis]]:
    """A run of an axis, or every step-th position of it."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    taken = range(axes[dim].size)[slice(call["start"], call["end"], call["step"])]
    if taken.step == 1:
        axes[dim] = call.slice(axes[dim], taken.start, max(taken.start, taken.stop))
    else:
        axes[dim] = every(call, axes[dim], taken)
    return [[call.space.resolve(axis) for axis in axes]]


def every(call: Call, axis: Axis, taken: range) -> Axis:
    """The positions `taken` of `axis`: one of each block of ``taken.step`` positions, and one at the end.

    Blocks begin at a multiple of the step, so that ``x[:, ::2]`` and ``x[:, 1::2]`` see the same ones.
    """
    start = taken.start - taken.start % taken.step
    blocks = min(len(taken), (axis.size - start) // taken.step)
    outer: Axis = Constant(0)
    if blocks:
        outer, inner = call.factor(call.slice(axis, start, start + blocks * taken.step), taken.step)
        call.freeze(inner, f"one of every {taken.step} positions is taken")
    if blocks == len(taken):
        return outer
    return concat([outer, call.slice(axis, taken[-1], taken[-1] + 1)])


@rule(
    aten.split.Tensor, aten.split_with_sizes, aten.split_with_sizes_copy,
    aten.unsafe_split, aten.unsafe_split_with_sizes, zeros=CARRIED, literals=_split, fuses=True,
)  # fmt: skip
def split(call: Call) -> list[list[Axis]]:
    """Runs of an axis, one after another."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    rest, outputs = axes[dim], []
    for output in call.outputs:
        part, rest = call.cut(rest, output.shape[dim])
        outputs.append((part, rest))
    return [axes[:dim] + [call.space.resolve(part)] + axes[dim + 1 :] for part, _ in outputs]


@rule(aten.unbind, zeros=CARRIED, fuses=True)
def unbind(call: Call) -> list[list[Axis]]:
    """An axis taken apart, position by position."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.freeze(axes[dim], "the axis is taken apart position by position")
    return [axes[:dim] + axes[dim + 1 :]] * len(call.outputs)


@rule(aten.flip, zeros=CARRIED)
def flip(call: Call) -> list[list[Axis]]:
    """Axes in reverse order."""
    axes = call.axes("self")
    for dim in call["dims"]:
        axes[dim] = permute(axes[dim], range(axes[dim].size - 1, -1, -1))
    return [axes]


@rule(aten.rot90, zeros=CARRIED)
def rot90(call: Call) -> list[list[Axis]]:
    """A plane turned by quarters: its two dimensions reversed, exchanged, or both."""
    axes = call.axes("self")
    first, second = call["dims"]
    turned = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[call["k"] % 4]
    for dim in turned:
        axes[dim] = permute(axes[dim], range(axes[dim].size - 1, -1, -1))
    if call["k"] % 2:
        axes[first], axes[second] = axes[second], axes[first]
    return [axes]


@rule(aten.roll, zeros=CARRIED, literals=_roll, picks=_taken_rolled, meta=shaped(_rolled))
def roll(call: Call) -> list[list[Axis]]:
    """The end of an axis moved to its front; of the flattened tensor, nothing that axes could say."""
    axes, dims = call.axes("self"), call["dims"]
    if not dims:
        call.freeze(axes, "a roll over the flattened tensor")
    for dim, shift in zip(dims, call["shifts"], strict=False):
        size = axes[dim].size
        if size and shift % size and not isinstance(axes[dim], Constant):
            first, last = call.cut(axes[dim], size - shift % size)
            axes[dim] = concat([last, first])
    return [axes]


states(aten.chunk, aten.tensor_split, aten.unsafe_chunk, literals=_split)
states(aten.narrow, literals=_narrow)
