"""Static sizes in a graph: which literal argument of which operator belongs to which axis, and its new value.

Each entry of the table rewrites the arguments of one node, given a `Site` that knows every axis before and after.
An operator that holds a size and is not in the table is found by the trial at the end of `couple`, and frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from passes.axes.expressions import Axis, Constant, Product, Sum
from passes.ops import Record, Value
from passes.ops.constant_indices import listed


@dataclass(frozen=True)
class Site:
    """One node of the new graph, and what is known of it.

    value: axes of its dense result (a tree of Value). axes_of: dense axes of a tensor argument, None for other nodes.
    survivors: which positions of an axis remain. number, dense: the value of a scalar argument in the new and in the
    dense graph.
    records: the operator calls that the node made.
    numbers_of: the values of an index that the program states, None for other arguments.
    """

    node: fx.Node
    value: Any
    axes_of: Callable[[Any], tuple[Axis, ...] | None]
    survivors: Callable[[Axis], np.ndarray]
    number: Callable[[fx.Node], Any]
    dense: Callable[[fx.Node], Any]
    records: Sequence[Record]
    numbers_of: Callable[[Any], Any] = lambda argument: None

    def new_size(self, axis: Axis) -> int:
        """The length of `axis` after pruning."""
        return int(self.survivors(axis).sum())

    def before(self, axis: Axis, position: int) -> int:
        """How many of the first `position` positions of `axis` remain."""
        return int(self.survivors(axis)[:position].sum())

    def moved(self, position: Any, new: Callable[[int], int]) -> Any:
        """A position given as a literal or as a node: ``new(its dense value)``, or the node where it says so itself."""
        if isinstance(position, fx.Node):
            old = self.dense(position)
            return position if not isinstance(old, int) or self.number(position) == new(old) else new(old)
        return new(position) if isinstance(position, int) and not isinstance(position, bool) else position

    @property
    def shifted(self) -> bool:
        """Whether a scalar argument is another number than in the dense graph."""
        scalars = [n for n in self.node.all_input_nodes if isinstance(self.dense(n), (int, float))]
        return any(self.dense(n) != self.number(n) for n in scalars)

    @property
    def input(self) -> tuple[Axis, ...] | None:
        """The axes of the first argument."""
        first = self.node.args[0] if self.node.args else next(iter(self.node.kwargs.values()), None)
        return self.axes_of(first)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or name."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return next((self.node.kwargs[n] for n in names if n in self.node.kwargs), default)

    def set(self, position: int, name: str, value: Any) -> None:
        """Set an argument where it stands, by position or name."""
        if len(self.node.args) > position:
            self.node.update_arg(position, value)
        else:
            present = next((n for n in (name, "size", "shape") if n in self.node.kwargs), name)
            self.node.update_kwarg(present, value)

    def literal(self, name: str) -> int | None:
        """The new value of a literal that an operator's rule tied to an axis."""
        for record in self.records:
            if name in record.literals:
                return self.new_size(record.literals[name])
        return None


def name_of(node: fx.Node) -> str:
    """The operator of a node under one name for its method, function and ATen spellings; "" for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.overloadpacket.__name__
    return getattr(node.target, "__name__", "")


def _restated(site: Site, sizes: Sequence[Any], axes: Sequence[Axis], view: bool = False) -> list[Any]:
    """`sizes` with every number that is not the new length of its axis replaced; -1 and matching nodes stay.

    A node that holds a size that may vary and a pruned width in one number (``n * heads``) cannot become a literal: a
    `view` finds its length by itself (-1), and elsewhere the number is scaled (``n * heads * 3 // 4``). So it is
    where the example holds a single image, and the number looks like a width alone.
    """
    result: list[Any] = []
    for size, axis in zip(sizes, axes, strict=True):
        new = site.new_size(axis)
        if not isinstance(size, fx.Node):
            result.append(size if size == -1 or axis.size == new else new)
        elif site.number(size) in (new, -1):
            result.append(size)
        elif not _has_constant(axis) and not varies(site.axes_of, size):
            result.append(new)
        elif view and -1 not in sizes and -1 not in result:
            result.append(-1)
        else:
            result.append(_scaled(site, size, new))
    return result


def varies(axes_of: Callable[[Any], tuple[Axis, ...] | None], number: fx.Node, place: int | None = None) -> bool:
    """Whether `number` (at `place`, where it is a shape) is computed from a size that no group alone decides."""
    asked = number.args[1] if len(number.args) > 1 and isinstance(number.args[1], int) else place
    for source in number.all_input_nodes:
        axes = axes_of(source)
        if axes is not None:
            if any(map(_has_constant, axes)) if asked is None else _has_constant(axes[asked]):
                return True
        elif varies(axes_of, source, asked if number.target is operator.getitem else None):
            return True
    return False


def _scaled(site: Site, number: fx.Node, new: int) -> fx.Node:
    """`number` times what remains of the axis, as nodes before the one at hand; exact whatever the batch size is."""
    graph = site.node.graph
    with graph.inserting_before(site.node):
        product = graph.call_function(operator.mul, (number, new))
        return graph.call_function(operator.floordiv, (product, site.number(number)))


def _has_constant(axis: Axis) -> bool:
    if isinstance(axis, (Sum, Product)):
        return any(map(_has_constant, axis.terms if isinstance(axis, Sum) else axis.factors))
    return isinstance(axis, Constant)


def _sizes(first: int, view: bool = False) -> Callable[[Site], None]:
    """Sizes of the result, one sequence or the arguments from position `first` on."""

    def apply(site: Site) -> None:
        node, axes = site.node, site.value.axes
        given = site.argument(first, "size", "shape")
        if isinstance(given, (list, tuple)):
            new = _restated(site, given, axes, view)
            site.set(first, "size", tuple(new) if type(given) is tuple else new)
        elif len(node.args) - first == len(axes):
            node.args = (*node.args[:first], *_restated(site, node.args[first:], axes, view))

    return apply


def _unflatten(site: Site) -> None:
    assert site.input is not None
    dim, sizes = site.argument(1, "dim"), site.argument(2, "sizes")
    dim %= len(site.input)
    site.set(2, "sizes", tuple(_restated(site, sizes, site.value.axes[dim : dim + len(sizes)])))


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
    elif isinstance(node.target, torch._ops.OpOverload):
        node.target = torch.ops.aten.split_with_sizes.default
    else:
        node.target = torch.split


def _index(site: Site) -> None:
    """x[...] and x[...] = y: slice bounds and positions move by what was removed before them."""
    axes = site.input
    if axes is None:
        return
    index = site.node.args[1]
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    taken = sum(1 for i in items if i is not None and i is not Ellipsis)
    dim = 0
    result: list[Any] = []
    for item in items:
        if item is Ellipsis:
            dim += len(axes) - taken
        elif item is not None:
            if isinstance(item, slice):
                item = _moved_slice(site, axes[dim], item)
            elif isinstance(item, list) or site.numbers_of(item) is not None:
                item = _renumbered(site, axes[dim], item)
            else:
                item = site.moved(item, partial(_place, site, axes[dim]))
            dim += 1
        result.append(item)
    site.node.update_arg(1, tuple(result) if isinstance(index, tuple) else result[0])


def _renumbered(site: Site, axis: Axis, index: Any) -> Any:
    """An index that the program states, by the new numbers of those positions that remain: a list in the graph."""
    order = listed(index if isinstance(index, list) else site.numbers_of(index), axis.size)
    remain = site.survivors(axis)
    if order is None or remain.all():
        return index
    return [site.before(axis, position) for position in order if remain[position]]


def _index_select(site: Site) -> None:
    """A list in place of the index, which only square brackets take."""
    dim, index = site.argument(1, "dim"), site.argument(2, "index")
    assert site.input is not None
    _picked(site, dim % len(site.input), index)


def _aten_index(site: Site) -> None:
    indices = list(site.argument(1, "indices"))
    given = [dim for dim, index in enumerate(indices) if index is not None]
    if len(given) == 1:
        _picked(site, given[0], indices[given[0]])


def _picked(site: Site, dim: int, index: Any) -> None:
    assert site.input is not None
    new = _renumbered(site, site.input[dim], index)
    if new is not index:
        site.node.op, site.node.target = "call_function", operator.getitem
        site.node.args, site.node.kwargs = (site.argument(0, "self", "input"), (*[slice(None)] * dim, new)), {}


def _place(site: Site, axis: Axis, position: int) -> int:
    """The new place; one that is counted from the end stays so, and one on an axis that stays is as it was."""
    if axis.size == site.new_size(axis):
        return position
    place = site.before(axis, position % axis.size)
    return place if position >= 0 else place - site.new_size(axis)


def _moved_slice(site: Site, axis: Axis, item: slice) -> slice:
    if axis.size == site.new_size(axis):  # a length that may be another one: its bounds hold as they are written
        return slice(site.moved(item.start, int), site.moved(item.stop, int), item.step)

    def positive(bound: int) -> int:
        return bound if bound >= 0 else max(0, axis.size + bound)

    def first(start: int) -> int:
        """The place of the first position of the slice that is left: blocks before it may be gone."""
        taken = range(positive(start), axis.size, item.step if isinstance(item.step, int) else 1)
        remain = site.survivors(axis)
        return site.before(axis, next((p for p in taken if remain[p]), positive(start)))

    def end(stop: int) -> int:
        """A bound beyond the axis says "to the end", whatever the batch size is."""
        return stop if stop > axis.size else site.before(axis, positive(stop))

    return slice(site.moved(item.start, first), site.moved(item.stop, end), item.step)


def _narrow(site: Site) -> None:
    assert site.input is not None
    dim, start, count = site.argument(1, "dim"), site.argument(2, "start"), site.argument(3, "length")
    axis = site.input[dim]
    if axis.size != site.new_size(axis) or site.shifted:
        begin = (site.dense(start) if isinstance(start, fx.Node) else start) % axis.size
        site.set(2, "start", site.moved(start, partial(_place, site, axis)))
        site.set(3, "length", site.moved(count, lambda i: site.before(axis, begin + i) - site.before(axis, begin)))


def _slice(site: Site) -> None:
    assert site.input is not None
    axis = site.input[site.argument(1, "dim", default=0)]
    given = slice(site.argument(2, "start"), site.argument(3, "end"), site.argument(4, "step", default=1))
    moved = _moved_slice(site, axis, given)
    for position, name, value in ((2, "start", moved.start), (3, "end", moved.stop)):
        if site.argument(position, name) is not None:
            site.set(position, name, value)


def _select(site: Site) -> None:
    assert site.input is not None
    axis, index = site.input[site.argument(1, "dim")], site.argument(2, "index")
    site.set(2, "index", site.moved(index, partial(_place, site, axis)))


def _pad(site: Site) -> None:
    given = list(site.argument(1, "pad"))
    axes = site.value.axes
    for number in range(len(given) // 2):
        axis = axes[len(axes) - 1 - number]
        assert site.input is not None
        old = site.input[len(axes) - 1 - number]
        if axis.size == site.new_size(axis) and old.size == site.new_size(old):
            continue
        before, after = given[2 * number : 2 * number + 2]
        if isinstance(before, int):
            kept = site.before(axis, before) if before > 0 else -site.before(old, -before)
            given[2 * number] = kept
        if isinstance(after, int):
            first = axis.size - after if after > 0 else old.size + after
            base = axis if after > 0 else old
            kept = site.new_size(base) - site.before(base, first)
            given[2 * number + 1] = kept if after > 0 else -kept
    site.set(1, "pad", given)


def _normalized_shape(site: Site) -> None:
    given = site.argument(1, "normalized_shape")
    value = site.value[0] if isinstance(site.value, (tuple, list)) else site.value
    site.set(1, "normalized_shape", _restated(site, given, value.axes[len(value.axes) - len(given) :]))


def _counted(literal: str, position: int, *names: str) -> Callable[[Site], None]:
    """An argument whose new value an operator's rule has tied to an axis."""

    def apply(site: Site) -> None:
        new = site.literal(literal)
        old = site.argument(position, *names)
        if new is not None and isinstance(old, int) and old != new:
            site.set(position, names[0], new)

    return apply


def _native_group_norm(site: Site) -> None:
    assert site.input is not None
    site.set(4, "C", site.new_size(site.input[1]))
    _counted("num_groups", 6, "group")(site)


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


def _attention(site: Site) -> None:
    """The default scale is 1/sqrt(head dim): it is pinned to the dense network's."""
    query = site.axes_of(site.argument(0, "query"))
    if query is None or query[-1].size == site.new_size(query[-1]):
        return
    if site.node.kwargs.get("scale") is None:  # a keyword in every spelling
        site.node.update_kwarg("scale", query[-1].size ** -0.5)


_view, _like, _made = _sizes(1, view=True), _sizes(1), _sizes(0)

TABLE: dict[str, Callable[[Site], None]] = {
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "view_copy"], _view),
    **dict.fromkeys(["expand", "broadcast_to", "new_zeros", "new_ones", "new_full", "new_empty"], _like),
    **dict.fromkeys(["zeros", "ones", "full", "empty"], _made),
    **dict.fromkeys(["split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk",
                     "unsafe_split_with_sizes", "split_with_sizes_copy"], _split),
    **dict.fromkeys(["getitem", "setitem"], _index),
    **dict.fromkeys(["pad", "_pad", "constant_pad_nd"], _pad),
    **dict.fromkeys(["layer_norm", "rms_norm", "native_layer_norm"], _normalized_shape),
    **dict.fromkeys(["repeat", "tile"], _repeat),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], _counted("groups", 6, "groups")),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], _counted("groups", 6, "groups")),
    **dict.fromkeys(["convolution", "_convolution"], _counted("groups", 8, "groups")),
    "group_norm": _counted("num_groups", 1, "num_groups"),
    "native_group_norm": _native_group_norm,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], _counted("groups", 1, "groups")),
    "unflatten": _unflatten,
    "repeat_interleave": _repeat_interleave,
    "narrow": _narrow,
    "slice": _slice,
    "select": _select,
    "roll": _roll,
    "index_select": _index_select,
    **dict.fromkeys(["index", "_unsafe_index"], _aten_index),
    **dict.fromkeys(["scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
                     "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                     "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable"],
                    _attention),
}  # fmt: skip

# Where operators of the table take numbers that are values: position and keyword. All their others are sizes or places.
_VALUES: dict[str, tuple[tuple[int, str], ...]] = {
    "full": ((1, "fill_value"),),
    "new_full": ((2, "fill_value"),),
    "setitem": ((2, ""),),
    **dict.fromkeys(["pad", "_pad"], ((3, "value"),)),
    "constant_pad_nd": ((2, "value"),),
    **dict.fromkeys(["layer_norm", "native_layer_norm", "group_norm"], ((4, "eps"),)),
    "rms_norm": ((3, "eps"),),
    "native_group_norm": ((7, "eps"),),
    **{name: ((4, "dropout_p"), (6, "scale")) for name, restated in TABLE.items() if restated is _attention},
}


def pin_values(node: fx.Node, old: Callable[[fx.Node], Any]) -> bool:
    """Give numbers that enter what `node` computes the dense network's values; whether there were any.

    Such a number (``q / math.sqrt(q.size(-1))``, ``torch.tensor(d)``) follows a size, but the masked network computes
    with the old one. `old` gives it for an argument that has changed, None for others. Where an operator is not in the
    table, every number counts as a value.
    """

    def pinned(argument: Any) -> Any:
        found = fx.map_arg(argument, lambda used: used if (number := old(used)) is None else number)
        return found

    before = node.args, node.kwargs
    places = _VALUES.get(name_of(node), ()) if name_of(node) in TABLE else None
    if places is None:
        node.args, node.kwargs = pinned(node.args), pinned(node.kwargs)
    for position, keyword in places or ():
        if position < len(node.args):
            node.update_arg(position, pinned(node.args[position]))
        elif keyword in node.kwargs:
            node.update_kwarg(keyword, pinned(node.kwargs[keyword]))
    return (node.args, node.kwargs) != before


def is_tensor_index(node: fx.Node) -> bool:
    """Whether a getitem node takes from a tensor (and not from a tuple)."""
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node)
