"""Sizes that a module keeps outside its tensors: integers in attributes, lists and configuration objects.

Which of them follow a pruned axis no rule says. Candidates are integers that equal an old size; the trial of
`passes.trial.corrections` keeps those with which the module runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

from passes.analysis.module_facts import Edit
from passes.axes.expressions import Axis, Permuted, Product, Sum, Variable, concat, nest
from passes.errors import PassError
from passes.graph.module_copies import OF_TORCH, copies_as_module, copy_module, modules_of
from passes.stream.call_arguments import attributes_of
from passes.transform.resize_modules import is_sized

Key = tuple[str | int, ...]
_DEPTH = 3


def integers_of(module: nn.Module) -> Iterator[tuple[Key, int]]:
    """Every integer that `module` itself keeps, with the names and positions that lead to it; no child's.

    Those of torch's layers follow their tensors without being asked for (`passes.transform.module_sizes`).
    """
    if is_sized(type(module)) or isinstance(module, nn.MultiheadAttention):
        return
    for name, value in module.__dict__.items():
        if name not in OF_TORCH and type(value) not in _WITHOUT:
            yield from _integers((name,), value, set())


_WITHOUT = frozenset((bool, float, str, type(None)))  # what holds no integer


def _integers(key: Key, value: object, above: set[int]) -> Iterator[tuple[Key, int]]:
    if type(value) is int:
        yield key, value
    elif isinstance(value, (torch.Tensor, nn.Module, str, type)) or len(key) > _DEPTH or id(value) in above:
        return
    elif isinstance(value, (list, tuple)):
        if len(value) <= 16:
            for number, item in enumerate(value):
                yield from _integers((*key, number), item, above | {id(value)})
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(name, (str, int)):
                yield from _integers((*key, name), item, above | {id(value)})
    elif not callable(value) or hasattr(value, "__dataclass_fields__"):
        for name, item in attributes_of(value).items():
            yield from _integers((*key, name), item, above | {id(value)})


def set_integer(module: nn.Module, key: Key, number: int) -> None:
    """Set the integer that `key` leads to. Objects and lists on the way are copied: others may share them."""
    name = str(key[0])
    value = module.__dict__[name]
    module.__dict__[name] = number if len(key) == 1 else _with(value, key[1:], number)


def _with(value: object, key: Key, number: int) -> object:
    name, rest = key[0], key[1:]

    def inner(item: object) -> Any:
        return _with(item, rest, number) if rest else number

    if isinstance(value, tuple):
        items = [inner(item) if place == name else item for place, item in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    made = copy.copy(value)
    if isinstance(value, (list, Mapping)):
        made[name] = inner(value[name])  # type: ignore[index]
    else:
        object.__setattr__(made, str(name), inner(getattr(value, str(name))))
    return made


def parts_of(axis: Axis) -> Iterator[Axis]:
    """`axis`, and every axis that it is made of: terms, all before or behind one, factors, runs of factors."""
    yield axis
    if isinstance(axis, Permuted):
        yield from parts_of(axis.variable)
    elif isinstance(axis, Sum):
        for term in axis.terms:
            yield from parts_of(term)
        for cut in range(2, len(axis.terms)):
            yield concat(axis.terms[:cut])
            yield concat(axis.terms[-cut:])
    elif isinstance(axis, Product):
        count = len(axis.factors)
        for start in range(count):
            for stop in range(start + 1, count + 1):
                if stop - start == 1:
                    yield from parts_of(axis.factors[start])
                elif stop - start < count:
                    yield nest(axis.factors[start:stop])


class Sizes:
    """Old sizes near one place of a program, each with the axes that have it: what an integer there may stand for."""

    def __init__(self, axes: Iterable[Axis], new_size: Callable[[Axis], int]) -> None:
        self.by_size: dict[int, list[Axis]] = {}
        for whole in axes:
            for axis in parts_of(whole):
                if new_size(axis) != axis.size:
                    known = self.by_size.setdefault(axis.size, [])
                    if axis not in known:
                        known.append(axis)

    def of(self, number: int) -> list[Axis]:
        """The axes that an integer may be the length of, the nearest first."""
        return self.by_size.get(number, [])


def edits_elsewhere(
    root: nn.Module, edits: Sequence[Edit], tensors: Mapping[str, tuple[Axis, ...]], known: Iterable[Edit]
) -> list[Edit]:
    """The edits that other modules of the same classes need: where the same integer stands for the same own axis.

    tensors: axes of parameters and buffers. known: edits that there are already.
    """
    modules = modules_of(root)
    taken = {(edit.path, edit.attribute) for edit in known}
    found = []
    for edit in edits:
        for path, axes in axes_elsewhere(modules, edit.path, edit.axes, tensors):
            same = dict(integers_of(modules[path])).get(edit.attribute) == prod(axis.size for axis in axes)
            if same and (path, edit.attribute) not in taken:
                found.append(Edit(path, edit.attribute, axes))
                taken.add((path, edit.attribute))
    return found


def edits_of_unread(
    root: nn.Module, tensors: Mapping[str, tuple[Axis, ...]], known: Iterable[Edit], narrowed: Callable[..., list[Axis]]
) -> list[Edit]:
    """Edits of integers that the run need not read (``num_features``): a size of the module's own layers, if of one.

    Looked for are axes of that length in the module's tensors, then in those of its children, and so on: where the
    nearest ones are one and the same axis, the integer is taken for its length. Configurations are left: they are
    shared.
    """
    taken = {(edit.path, edit.attribute) for edit in known}
    sought = [
        (path, key, number)
        for path, module in modules_of(root).items()
        for key, number in integers_of(module)
        if len(key) == 1 and number > 1 and (path, key) not in taken
    ]
    # By path the axes of each length there, and how many modules deeper they are.
    below: dict[str, dict[int, list[tuple[int, Axis]]]] = {path: {} for path, _, _ in sought}
    around = cache(lambda path: [(depth, below[p]) for depth, p in enumerate(_around(path)) if p in below])
    for name, axes in tensors.items() if sought else ():
        for depth, there in around(name.rpartition(".")[0]):
            for axis in axes:
                there.setdefault(axis.size, []).append((depth, axis))
    found = []
    for path, key, number in sought:
        near = below[path].get(number, [])
        least = min((depth for depth, _ in near), default=0)
        nearest = list(dict.fromkeys(axis for depth, axis in near if depth == least))
        if len(nearest) == 1 and narrowed(nearest):
            found.append(Edit(path, key, (nearest[0],)))
    return found


def edits_of_copied_state(root: nn.Module, known: Sequence[Edit]) -> list[Edit]:
    """The edits without which copies and pickles of a module that rebuilds itself would have the old integer again.

    Such a module (``__setstate__`` that calls ``__init__``, as einops' layers have) keeps an integer twice: where its
    forward reads it, and where its copies are made from.
    """
    modules = modules_of(root)
    taken = {(edit.path, edit.attribute) for edit in known}
    found = []
    for edit in known:
        module = modules[edit.path]
        kind: Any = type(module)
        if copies_as_module(kind) or _is_copied(module, edit.attribute, edit.attribute):
            continue
        number = prod(axis.size for axis in edit.axes)
        for key, other in integers_of(module):
            same = other == number and (edit.path, key) not in taken
            if same and _is_copied(module, key, edit.attribute):
                found.append(Edit(edit.path, key, edit.axes))
                taken.add((edit.path, key))
                break
    return found


def _is_copied(module: nn.Module, changed: Key, read: Key) -> bool:
    """Whether a copy of `module` has at `read` what the module was given at `changed`."""
    probe = copy_module(module, lambda _, tensor: tensor)
    number = dict(integers_of(probe))[changed] + 1
    set_integer(probe, changed, number)
    try:
        copied = copy_module(probe, lambda _, tensor: tensor)
    except PassError:  # it cannot be rebuilt with that number alone
        return False
    return dict(integers_of(copied)).get(read) == number


def _around(path: str) -> Iterator[str]:
    """The path of a module, and those of the modules around it, the nearest first."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def axes_elsewhere(
    modules: Mapping[str, nn.Module], path: str, axes: Sequence[Axis], tensors: Mapping[str, tuple[Axis, ...]]
) -> Iterator[tuple[str, tuple[Axis, ...]]]:
    """For each other module of the class of that at `path` the axes that take the places of `axes` in its tensors."""
    places = [_place(path, axis, tensors) for axis in axes]
    if any(place is None for place in places):
        return
    kind = type(modules[path])
    for other, module in modules.items():
        if type(module) is kind and other != path:
            there = [_at(other, place, tensors) for place in places if place is not None]
            if all(axis is not None for axis in there):
                yield other, tuple(axis for axis in there if axis is not None)


_Place = tuple[str, int, int]


def _place(path: str, axis: Axis, tensors: Mapping[str, tuple[Axis, ...]]) -> _Place | None:
    """(name below the module, dimension, number among its parts) of an axis in the module's own tensors."""
    prefix = f"{path}." if path else ""
    for name, axes in tensors.items():
        if name.startswith(prefix):
            for dim, whole in enumerate(axes):
                for number, part in enumerate(parts_of(whole)):
                    if part == axis and (not isinstance(axis, Variable) or part is axis):
                        return name[len(prefix) :], dim, number
    return None


def _at(path: str, place: _Place, tensors: Mapping[str, tuple[Axis, ...]]) -> Axis | None:
    name, dim, number = place
    axes = tensors.get(f"{path}.{name}" if path else name)
    if axes is None or dim >= len(axes):
        return None
    parts = list(parts_of(axes[dim]))
    return parts[number] if number < len(parts) else None
