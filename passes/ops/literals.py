"""Static sizes in a graph: what is known of one node whose literal arguments belong to axes, and their new values.

Each operator's rule states a function that restates its literals, given a `Site` that knows every axis before and
after. An operator that holds a size and states none is found by the trial at the end of `couple`, and frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx
from torch.fx.node import Argument

from passes.axes.expressions import Axis, Constant, Product, Sum
from passes.ops.call import Record, listed


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
    axes_of: Callable[[Argument], tuple[Axis, ...] | None]
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

    def moved(self, position: object, new: Callable[[int], int]) -> Any:
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

    def argument(self, position: int, *names: str, default: object = None) -> Any:
        """An argument by position or name."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return next((self.node.kwargs[n] for n in names if n in self.node.kwargs), default)

    def set(self, position: int, name: str, value: Argument) -> None:
        """Set an argument where it stands, by position or name."""
        if len(self.node.args) > position:
            self.node.update_arg(position, value)
        else:
            present = next((n for n in (name, "size", "shape") if n in self.node.kwargs), name)
            self.node.update_kwarg(present, value)


def restated(site: Site, sizes: Sequence[object], axes: Sequence[Axis], view: bool = False) -> list[Any]:
    """`sizes` with every number that is not the new length of its axis replaced; -1 and matching nodes stay.

    A node that holds a size that may vary and a pruned width in one number (``n * heads``) cannot become a literal: a
    `view` finds its length by itself (-1), and elsewhere the number is scaled (``n * heads * 3 // 4``). So it is
    where the example holds a single image, and the number looks like a width alone.
    """
    result: list[object] = []
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


def varies(axes_of: Callable[[fx.Node], tuple[Axis, ...] | None], number: fx.Node, place: int | None = None) -> bool:
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


def sizes_from(first: int, view: bool = False) -> Callable[[Site], None]:
    """Sizes of the result, one sequence or the arguments from position `first` on."""

    def apply(site: Site) -> None:
        node, axes = site.node, site.value.axes
        given = site.argument(first, "size", "shape")
        if isinstance(given, (list, tuple)):
            new = restated(site, given, axes, view)
            site.set(first, "size", tuple(new) if type(given) is tuple else new)
        elif len(node.args) - first == len(axes):
            node.args = (*node.args[:first], *restated(site, node.args[first:], axes, view))

    return apply


def renumbered(site: Site, axis: Axis, index: object) -> Any:
    """An index that the program states, by the new numbers of those positions that remain: a list in the graph."""
    order = listed(index if isinstance(index, list) else site.numbers_of(index), axis.size)
    remain = site.survivors(axis)
    if order is None or remain.all():
        return index
    return [site.before(axis, position) for position in order if remain[position]]


def picked(site: Site, dim: int, index: object) -> None:
    """A list in place of the index, which only square brackets take."""
    assert site.input is not None
    new = renumbered(site, site.input[dim], index)
    if new is not index:
        site.node.op, site.node.target = "call_function", operator.getitem
        site.node.args, site.node.kwargs = (site.argument(0, "self", "input"), (*[slice(None)] * dim, new)), {}


def placed(site: Site, axis: Axis, position: int) -> int:
    """The new place; one that is counted from the end stays so, and one on an axis that stays is as it was."""
    if axis.size == site.new_size(axis):
        return position
    place = site.before(axis, position % axis.size)
    return place if position >= 0 else place - site.new_size(axis)


def moved_slice(site: Site, axis: Axis, item: slice) -> slice:
    """`item` on what is left of `axis`."""
    if axis.size == site.new_size(axis):  # a length that may be another one: its bounds hold as they are written
        return slice(site.moved(item.start, int), site.moved(item.stop, int), item.step)

    def positive(bound: int) -> int:
        return bound if bound >= 0 else max(0, axis.size + bound)

    def first(start: int) -> int:
        """The place of the first position of the slice that is left: blocks before it may be removed."""
        taken = range(positive(start), axis.size, item.step if isinstance(item.step, int) else 1)
        remain = site.survivors(axis)
        return site.before(axis, next((p for p in taken if remain[p]), positive(start)))

    def end(stop: int) -> int:
        """A bound beyond the axis says "to the end", whatever the batch size is."""
        return stop if stop > axis.size else site.before(axis, positive(stop))

    return slice(site.moved(item.start, first), site.moved(item.stop, end), item.step)
