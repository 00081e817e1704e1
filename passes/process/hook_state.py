"""What hooks write outside of their module (a list of features, a counter around them), put back after runs.

A copy of a module runs the hooks of the original: the functions themselves, with all that they refer to.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from passes.process.torch_private import hooks_of

_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
_CLOSED = (nn.Module, torch.Tensor, type, types.ModuleType)
_DEPTH = 5  # of what a hook refers to: an object, its attributes, a dict among them, a list in it
_Saved = tuple[list[tuple[types.CellType, object]], dict[int, tuple[Any, Any]]]


@contextmanager
def hooks_kept(networks: Iterable[object]) -> Iterator[None]:
    """On leaving, what the hooks of these networks refer to is what it was, but for values written into tensors.

    Lists, dicts, sets, attributes of objects and variables of enclosing functions are put back.
    """
    hooks = [h for n in networks if isinstance(n, nn.Module) for part in n.modules() for h in hooks_of(part)]
    if not hooks:
        yield
        return
    saved: _Saved = [], {}
    for hook in hooks:
        _save(hook, saved, _DEPTH)
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
