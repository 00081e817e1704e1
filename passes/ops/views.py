"""Operators that move positions without computing: views, permutations, copies with repetition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passes.axes.expressions import ONE, Axis, Constant, concat, nest, permute
from passes.ops.registry import Call, aten, rule
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


@rule(aten.view.default, aten._unsafe_view, aten.view_copy.default, zeros=CARRIED)
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
        made = call.refactor([axes[i] for i in before], [shape[j] for j in after])
        for j, axis in zip(after, made, strict=True):
            result[j] = axis
    return [[call.space.resolve(axis) for axis in result]]


@rule(aten.as_strided, zeros=CARRIED)
def restride(call: Call) -> list[list[Axis]]:
    """A view by strides: the same tensor where shape and strides stay (single positions aside), else unknown."""
    axes, sizes, strides = call.axes("self"), list(call["size"]), call["stride"]
    before = call.tensors[0]
    same = sizes == [axis.size for axis in axes] and not call.get("storage_offset")
    if same and all(size == 1 or old == new for size, old, new in zip(sizes, before.stride(), strides, strict=True)):
        return [axes]
    call.freeze(axes, "a view by strides can show any position anywhere")
    return [call.fixed()]


@rule(aten.permute, zeros=CARRIED)
def permute_dims(call: Call) -> list[list[Axis]]:
    """Dimensions in another order."""
    axes = call.axes("self")
    return [[axes[d] for d in call["dims"]]]


@rule(aten.t, zeros=CARRIED)
def reverse_dims(call: Call) -> list[list[Axis]]:
    """Dimensions in reverse order."""
    return [call.axes("self")[::-1]]


@rule(aten.transpose, zeros=CARRIED)
def transpose(call: Call) -> list[list[Axis]]:
    """Two dimensions exchanged."""
    axes = call.axes("self")
    first, second = call["dim0"], call["dim1"]
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return [axes]


@rule(aten.unsqueeze, aten.squeeze, zeros=CARRIED)
def squeeze(call: Call) -> list[list[Axis]]:
    """Dimensions of size one come or go; the others keep their order."""
    others = iter([axis for axis in call.axes("self") if axis.size != 1])
    return [[ONE if fixed.size == 1 else next(others) for fixed in call.fixed()]]


@rule(aten.expand, zeros=CARRIED)
def expand(call: Call) -> list[list[Axis]]:
    """A dimension of size one becomes alike units, whose number is a literal of the program."""
    axes, fixed = call.axes("self"), call.fixed()
    axes = [ONE] * (len(fixed) - len(axes)) + axes
    return [[a if a.size == f.size else call.fresh(f.size) for a, f in zip(axes, fixed, strict=True)]]


@rule(aten.repeat, zeros=CARRIED)
def repeat(call: Call) -> list[list[Axis]]:
    """Copies of a whole axis one after another; of a single position, alike units."""
    axes, times = call.axes("self"), call["repeats"]
    axes = [ONE] * (len(times) - len(axes)) + axes
    return [[call.fresh(n) if a.size == 1 else nest([Constant(n), a]) for a, n in zip(axes, times, strict=True)]]


@rule(aten.select, zeros=CARRIED)
def select(call: Call) -> list[list[Axis]]:
    """One position of an axis, which therefore stays."""
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    index = call["index"] % axes[dim].size
    call.slice(axes[dim], index, index + 1)
    return [axes[:dim] + axes[dim + 1 :]]


@rule(aten.slice.Tensor, zeros=CARRIED)
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
    aten.unsafe_split, aten.unsafe_split_with_sizes, zeros=CARRIED,
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


@rule(aten.unbind, zeros=CARRIED)
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


@rule(aten.roll, zeros=CARRIED)
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
