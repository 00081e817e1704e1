"""What programs write outside of their modules, put back after runs: a list of features that a hook fills, a counter
around it, a dict of position tables in the file of a class or in the class itself.

A copy of a module runs the hooks of the original, the functions themselves with all that they refer to, and is of the
same classes.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from passes.process.memoised import users_classes
from passes.process.torch_private import hooks_of

_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
_CLOSED = (nn.Module, torch.Tensor, type, types.ModuleType)
_DEPTH = 5  # of what a hook refers to: an object, its attributes, a dict among them, a list in it
_Saved = tuple[list[tuple[types.CellType, object]], dict[int, tuple[Any, Any]]]


@contextmanager
def outside_kept(networks: Iterable[object]) -> Iterator[None]:
    """On leaving, what the classes and hooks of these networks refer to is what it was, but for values written into
    tensors.

    Lists, dicts, sets, attributes of objects that hooks hold and variables of their enclosing functions are put back.
    """
    parts = [part for network in networks if isinstance(network, nn.Module) for part in network.modules()]
    saved: _Saved = [], {}
    for hook in (hook for part in parts for hook in hooks_of(part)):
        _save(hook, saved, _DEPTH)
    for container in _of_classes(set(map(type, parts))):
        _save(container, saved, 1)
    cells, containers = saved
    try:
        yield
    finally:
        for cell, value in cells:
            cell.cell_contents = value
        for container, contents in containers.values():
            refill(container, contents)


def filled_cells(function: types.FunctionType) -> list[types.CellType]:
    """The variables of enclosing functions that a function uses, as far as they have been assigned."""
    found = []
    for cell in function.__closure__ or ():
        try:
            cell.cell_contents  # noqa: B018  (it raises where there is none)
        except ValueError:
            continue
        found.append(cell)
    return found


def _of_classes(kinds: Iterable[type]) -> Iterator[Any]:
    """The containers in the user's classes, and those in their files that their methods name, and functions there."""
    bases = users_classes(kinds)
    functions = [function for base in bases for value in vars(base).values() for function in _behind(value)]
    yield from (value for base in bases for value in vars(base).values() if type(value) in _CONTAINERS)
    seen = set[types.CodeType]()
    while functions:
        function = functions.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        named = [function.__globals__.get(name) for name in _names(function.__code__)]
        yield from (value for value in named if type(value) in _CONTAINERS)
        others = (value for value in named if isinstance(value, types.FunctionType))
        functions += [other for other in others if other.__globals__ is function.__globals__]


def _behind(value: object) -> Iterator[types.FunctionType]:
    """The functions that an attribute of a class is made of, under decorators as well."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    for function in (value.fget, value.fset) if isinstance(value, property) else (value,):
        function = inspect.unwrap(function) if callable(function) else function
        if isinstance(function, types.FunctionType):
            yield function


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those that are written inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from codes_of(inner)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function and those inside it look up outside."""
    return (name for part in codes_of(code) for name in part.co_names)


def _save(item: Any, saved: _Saved, depth: int) -> None:
    """Note what `item` refers to, so many objects deep."""
    cells, containers = saved
    if depth < 0 or isinstance(item, _CLOSED) or id(item) in containers:
        return
    if isinstance(item, functools.partial):
        inside = [item.func, *item.args, *item.keywords.values()]
    elif isinstance(item, types.MethodType):
        inside = [item.__self__, item.__func__]
    elif isinstance(item, types.FunctionType):
        enclosing = [(cell, cell.cell_contents) for cell in filled_cells(item)]
        cells += enclosing
        named = (item.__globals__.get(name) for name in item.__code__.co_names)
        inside = [*(value for _, value in enclosing), *(item.__defaults__ or ())]
        inside += [one for one in named if not isinstance(one, types.FunctionType)]
    elif type(item) in _CONTAINERS:
        containers[id(item)] = (item, item.copy())
        inside = list(item.values()) if isinstance(item, dict) else list(item)
    else:
        inside = [attributes] if (attributes := getattr(item, "__dict__", None)) and type(attributes) is dict else []
    for one in inside:
        _save(one, saved, depth - 1)


def refill(container: Any, contents: Any) -> None:
    """Put back what a container held, if it holds anything else."""
    if len(container) == len(contents) and all(a is b for a, b in zip(_flat(container), _flat(contents), strict=True)):
        return
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(contents)
    else:
        container.update(contents)


def _flat(container: Any) -> list[object]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)
