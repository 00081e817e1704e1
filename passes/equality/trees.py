"""Tensors inside containers, data classes and mappings of any class: all of them changed, or listed in order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from passes.process.torch_private import pytree


def map_tensors(function: Callable[[torch.Tensor], object], tree: object) -> Any:
    """`tree` with `function` applied to every tensor: in containers, data classes and mappings of any class."""
    return _mapped(function, tree, {})


def tensors_of(tree: object) -> list[torch.Tensor]:
    """Every tensor of `tree` once, in the order in which `map_tensors` changes them."""
    return list({id(leaf): leaf for leaf in leaves_of(tree) if isinstance(leaf, torch.Tensor)}.values())


def leaves_of(tree: object) -> list[object]:
    """What `tree` holds, in order: tensors and everything else that is no container; to compare two outputs."""
    found: list[object] = []

    def visit(value: object) -> None:
        parts = _parts(value)
        if parts is None:
            found.append(value)
        else:
            for part in parts:
                visit(part)

    visit(tree)
    return found


def _is_container(value: object) -> bool:
    return type(value) in pytree.SUPPORTED_NODES or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _parts(value: object) -> list[object] | None:
    if isinstance(value, torch.Tensor):
        return None
    if _is_container(value):
        return list(pytree.tree_flatten(value, is_leaf=lambda part: part is not value)[0])
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _mapped(function: Callable[[torch.Tensor], object], value: object, memo: dict[int, object]) -> object:
    if isinstance(value, torch.Tensor):
        if id(value) not in memo:  # a tensor given twice is one tensor afterwards, too
            memo[id(value)] = function(value)
        return memo[id(value)]
    change = lambda part: _mapped(function, part, memo)  # noqa: E731
    if _is_container(value):
        parts, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        return pytree.tree_unflatten([change(part) for part in parts], spec) if parts else copy.copy(value)
    if isinstance(value, Mapping):
        return _refilled(value, {key: change(part) for key, part in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(copied, field.name, change(getattr(value, field.name)))
        return copied
    return value


def _refilled(value: Mapping, entries: dict[object, object]) -> object:
    copied: Any = copy.copy(value)
    if not hasattr(copied, "__setitem__"):
        return entries
    if getattr(copied, "data", None) is getattr(value, "data", ...):  # UserDict's copy may share what it holds
        copied.data = {}
    for key, entry in entries.items():
        copied[key] = entry
    return copied
