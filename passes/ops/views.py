"""Operators that move positions without computing: views, permutations, copies with repetition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passes.axes.expressions import ONE, Axis, Constant, leaves, nest
from passes.ops.call import Call, aten
from passes.ops.literals import Site, restated, sizes_from
from passes.ops.table import rule, states
from passes.ops.zeros import CARRIED


def segments(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions larger than one, before and after a view, that hold the same positions.

    >>> list(segments([2, 6, 7, 7], [2, 1, 294]))
    [([0], [0]), ([1, 2, 3], [2])]
    """
    left = [i for i, size in enumerate(before) if size != 1]
    right = [j for j, size in enumerate(after) if size != 1]
    while left and right:
        taken_left, taken_right = [left.pop(0)], [right.pop(0)]
        size_left, size_right = before[taken_left[0]], after[taken_right[0]]
        while size_left != size_right:
            if size_left < size_right:
                taken_left.append(left.pop(0))
                size_left *= before[taken_left[-1]]
            else:
                taken_right.append(right.pop(0))
                size_right *= after[taken_right[-1]]
        yield taken_left, taken_right


def _unflatten(site: Site) -> None:
    assert site.input is not None
    dim, sizes = site.argument(1, "dim"), site.argument(2, "sizes")
    dim %= len(site.input)
    site.set(2, "sizes", tuple(restated(site, sizes, site.value.axes[dim : dim + len(sizes)])))


def _repeat(site: Site) -> None:
    given = site.argument(1, "repeats", "dims")
    varargs = not isinstance(given, (list, tuple))
    times = list(site.node.args[1:] if varargs else given)
    inputs = list(site.input or ())
    ones = len(times) - len(inputs)
    for number, axis in enumerate(site.value.axes):
        old = inputs[number - ones] if number >= ones else None
        if isinstance(times[number], int) and axis.size != site.new_size(axis):
            times[number] = site.new_size(axis) // (site.new_size(old) if old is not None else 1)
    if varargs:
        site.node.args = (site.node.args[0], *times)
    else:
        site.set(1, "repeats", times)


def _repeat_interleave(site: Site) -> None:
    dim, times = site.argument(2, "dim"), site.argument(1, "repeats")
    if dim is not None and isinstance(times, int) and site.input is not None:
        old, new = site.new_size(site.input[dim]), site.new_size(site.value.axes[dim])
        site.set(1, "repeats", new // old)


@rule(
    aten.view.default, aten._unsafe_view, aten.view_copy.default, zeros=CARRIED, literals=sizes_from(1, view=True),
    fuses=True,
)  # fmt: skip
def view(call: Call) -> list[list[Axis]]:
    """Merge and split neighbouring dimensions: a product on either side."""
    axes, result = call.axes("self"), call.fixed()
    if 0 in call.outputs[0].shape:
        call.freeze(axes, "a view of an empty tensor")
        return [result]
    shape = [axis.size for axis in result]
    for before, after in segments([axis.size for axis in axes], shape):
        if len(before) == len(after) == 1:
            result[after[0]] = axes[before[0]]
            continue
        if len(before) > 1 and len(after) > 1 and any(leaves(axes[i]) for i in before):
            call.record.crossed += tuple(before)
        made = call.refactor([axes[i] for i in before], [shape[j] for j in after])
        for j, axis in zip(after, made, strict=True):
            result[j] = axis
    return [[call.space.resolve(axis) for axis in result]]


states(aten.reshape, literals=sizes_from(1, view=True))


@rule(aten.as_strided, zeros=CARRIED, fuses=True)
def restride(call: Call) -> list[list[Axis]]:
    """A view by strides: the same tensor where shape and strides stay (single positions aside), else unknown."""
    axes, sizes, strides = call.axes("self"), list(call["size"]), call["stride"]
    before = call.tensors[0]
    same = sizes == [axis.size for axis in axes] and not call.get("storage_offset")
    if same and all(size == 1 or old == new for size, old, new in zip(sizes, before.stride(), strides, strict=True)):
        return [axes]
    call.freeze(axes, "a view by strides can show any position anywhere")
    return [call.fixed()]


@rule(aten.permute, zeros=CARRIED, sizeless=True, fuses=True)
def permute_dims(call: Call) -> list[list[Axis]]:
    """Dimensions in another order."""
    axes = call.axes("self")
    return [[axes[d] for d in call["dims"]]]


@rule(aten.t, zeros=CARRIED, sizeless=True, fuses=True)
def reverse_dims(call: Call) -> list[list[Axis]]:
    """Dimensions in reverse order."""
    return [call.axes("self")[::-1]]


@rule(aten.transpose, zeros=CARRIED, sizeless=True, fuses=True)
def transpose(call: Call) -> list[list[Axis]]:
    """Two dimensions exchanged."""
    axes = call.axes("self")
    first, second = call["dim0"], call["dim1"]
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return [axes]


@rule(aten.unsqueeze, aten.squeeze, zeros=CARRIED, sizeless=True, fuses=True)
def squeeze(call: Call) -> list[list[Axis]]:
    """Dimensions of size one come or go; the others keep their order."""
    others = iter([axis for axis in call.axes("self") if axis.size != 1])
    return [[ONE if fixed.size == 1 else next(others) for fixed in call.fixed()]]


@rule(aten.expand, zeros=CARRIED, literals=sizes_from(1), fuses=True)
def expand(call: Call) -> list[list[Axis]]:
    """A dimension of size one becomes alike units, whose number is a literal of the program."""
    axes, fixed = call.axes("self"), call.fixed()
    axes = [ONE] * (len(fixed) - len(axes)) + axes
    return [[a if a.size == f.size else call.fresh(f.size) for a, f in zip(axes, fixed, strict=True)]]


@rule(aten.repeat, zeros=CARRIED, literals=_repeat)
def repeat(call: Call) -> list[list[Axis]]:
    """Copies of a whole axis one after another; of a single position, alike units."""
    axes, times = call.axes("self"), call["repeats"]
    axes = [ONE] * (len(times) - len(axes)) + axes
    return [[call.fresh(n) if a.size == 1 else nest([Constant(n), a]) for a, n in zip(axes, times, strict=True)]]


@rule(aten.pixel_shuffle, zeros=CARRIED)
def pixel_shuffle(call: Call) -> list[list[Axis]]:
    """(c r r) h w -> c (h r) (w r)."""
    *lead, channels, height, width = call.axes("self")
    call.freeze([height, width], "pixels are rearranged in space")
    outer, inner = call.factor(channels, call["upscale_factor"] ** 2)
    call.freeze(inner, "channels become pixels")
    return [[*lead, outer, *call.fixed()[-2:]]]


@rule(aten.pixel_unshuffle, zeros=CARRIED)
def pixel_unshuffle(call: Call) -> list[list[Axis]]:
    """c (h r) (w r) -> (c r r) h w."""
    *lead, channels, height, width = call.axes("self")
    call.freeze([height, width], "pixels are rearranged in space")
    inner = Constant(call["downscale_factor"] ** 2)
    return [[*lead, nest([channels, inner]), *call.fixed()[-2:]]]


@rule(aten.channel_shuffle, zeros=CARRIED)
def channel_shuffle(call: Call) -> list[list[Axis]]:
    """(g c) -> (c g)."""
    batch, channels, *space = call.axes("self")
    outer, inner = call.factor(channels, channels.size // call["groups"])
    call.literal("groups", outer)
    return [[batch, nest([inner, outer]), *space]]


@rule(aten.diagonal, zeros=CARRIED)
def diagonal(call: Call) -> list[list[Axis]]:
    """Two dimensions become one that runs along both."""
    axes = call.axes("self")
    chosen = {call["dim1"] % len(axes), call["dim2"] % len(axes)}
    call.freeze([axes[d] for d in chosen], "a diagonal runs along this axis")
    return [[axis for d, axis in enumerate(axes) if d not in chosen] + call.fixed()[-1:]]


@rule(aten.unfold, zeros=CARRIED)
def unfold(call: Call) -> list[list[Axis]]:
    """Sliding windows over one dimension."""
    axes = call.axes("self")
    dim = call["dimension"] % len(axes)
    call.freeze(axes[dim], "windows slide over this axis")
    fixed = call.fixed()
    return [[*axes[:dim], fixed[dim], *axes[dim + 1 :], fixed[-1]]]


states(aten.broadcast_to, literals=sizes_from(1))
states(aten.unflatten.int, literals=_unflatten)
states(aten.tile, literals=_repeat)
states(aten.repeat_interleave.self_int, literals=_repeat_interleave)
