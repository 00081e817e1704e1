"""Integers that remember which attributes of which modules they were computed from.

A module's program reads ``self.head_dim``, multiplies it, and hands the result to torch. Run once with such integers
in the place of its own, each number in a call names the attributes that have to follow when the number has to.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from passes.analysis.module_facts import Edit
from passes.axes.expressions import Axis, Product, nest
from passes.graph.module_copies import modules_of
from passes.transform.size_attributes import Key, Sizes, integers_of, set_integer
from passes.transform.slicing import Slicing

_MOST = 4  # sets of edits that one number is tried with

Source = tuple[str, Key, int]  # path of the module, what leads to the integer in it, the integer


class StatedSize(int):
    """An integer with its sources. is_product: it is their product; else it was computed from them in another way."""

    sources: tuple[Source, ...]
    is_product: bool

    @classmethod
    def of(cls, number: int, sources: tuple[Source, ...], is_product: bool) -> StatedSize:
        made = cls(number)
        made.sources, made.is_product = sources, is_product
        return made

    def __reduce__(self) -> Any:
        return int, (int(self),)  # copies and pickles are plain numbers

    def __deepcopy__(self, memo: object) -> StatedSize:
        return self


def _arithmetic(
    name: str, function: Callable[[int, int], object], turned: bool
) -> Callable[[StatedSize, object], object]:
    def method(self: StatedSize, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        left, right = (int(other), int(self)) if turned else (int(self), int(other))
        result = function(left, right)
        if not isinstance(result, int):
            return result
        others = other.sources if isinstance(other, StatedSize) else ()
        product = name == "mul" and self.is_product and isinstance(other, StatedSize) and other.is_product
        sources = (*others, *self.sources) if turned else (*self.sources, *others)
        return StatedSize.of(result, sources, product)

    return method


for _name in ("mul", "add", "sub", "floordiv"):
    _function = getattr(operator, _name)
    setattr(StatedSize, f"__{_name}__", _arithmetic(_name, _function, False))
    setattr(StatedSize, f"__r{_name}__", _arithmetic(_name, _function, True))


def state_sources(root: nn.Module) -> None:
    """Replace every integer that the modules of `root` keep, and that may be a size, by one that knows where it was."""
    done: set[int] = set()
    for path, module in modules_of(root).items():
        if id(module) in done:
            continue
        done.add(id(module))
        for key, number in list(integers_of(module)):
            if number > 1:
                set_integer(module, key, StatedSize.of(number, ((path, key, number),), True))


def edits_of_sources(
    numbers: Sequence[tuple[Any, Any]], exact: Mapping[Any, Axis], sizes: Sizes, slicing: Slicing,
    known: Sequence[Edit],
) -> Iterator[tuple[Edit, ...]]:  # fmt: skip
    """Sets of edits with which a call's numbers may follow, the likeliest first.

    numbers: of the call, by position. exact: the axis whose length a number is. sizes: axes near the call.
    """
    done = set(known)
    options: list[list[tuple[Edit, ...]]] = []
    for position, number in numbers:
        if isinstance(number, StatedSize):
            axes = [exact[position]] if position in exact else []
            axes += [axis for axis in sizes.of(number) if axis not in axes]
            found = [edits for axis in axes for edits in _follow(number, axis, done, slicing)]
            if not found:
                one_each = [[Edit(p, k, (axis,)) for axis in sizes.of(n)] for p, k, n in number.sources if sizes.of(n)]
                found = [tuple(edits) for edits in itertools.product(*one_each)] if one_each else []
            if found:
                options.append(found[:_MOST])
    if options:
        yield _each_once(edit for found in options for edit in found[0])
    for count in range(1, len(options) + 1):
        for chosen in itertools.combinations(options, count):
            for combination in itertools.product(*chosen):
                yield _each_once(edit for edits in combination for edit in edits)


def _each_once(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    return tuple({(edit.path, edit.attribute): edit for edit in edits}.values())


def _follow(number: StatedSize, axis: Axis, done: set[Edit], slicing: Slicing) -> Iterator[tuple[Edit, ...]]:
    """The edits with which a number that is the product of its sources becomes the length of `axis`."""
    if not number.is_product:
        return
    factors = list(axis.factors) if isinstance(axis, Product) else [axis]
    for cuts in itertools.combinations(range(1, len(factors)), len(number.sources) - 1):
        runs = [nest(factors[a:b]) for a, b in itertools.pairwise((0, *cuts, len(factors)))]
        for order in itertools.permutations(runs):
            if [run.size for run in order] == [source[2] for source in number.sources]:
                edits = [Edit(p, k, (run,)) for (p, k, _), run in zip(number.sources, order, strict=True)]
                made = tuple(edit for edit in edits if slicing.narrowed(edit.axes))
                if not done.issuperset(made):
                    yield made
