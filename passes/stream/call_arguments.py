"""Arguments of a module as it is called: bound, described as plain data, and searched for tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from passes.documents.described_values import Described, described, examples
from passes.errors import PassError
from passes.graph.module_copies import PLAIN

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Another value for an argument that is no tensor.
CHANGED: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value + 0.25,
}


def bound(module: nn.Module, example_inputs: object) -> Arguments:
    """Example inputs as ``(args, kwargs)`` of a call of `module`.

    A dict holds keyword arguments; a tuple or list positional ones; anything else is the only argument.
    """
    if isinstance(example_inputs, CallInputs):
        return example_inputs.args, dict(example_inputs.kwargs)
    if isinstance(example_inputs, Mapping) and all(isinstance(key, str) for key in example_inputs):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if example_inputs is None:
        raise PassError(
            f"couple: example_inputs is None, and a {type(module).__name__} does not say what it takes; "
            "pass a tensor, a tuple of positional arguments or a dict of keyword arguments"
        )
    return (example_inputs,), {}


@dataclasses.dataclass(frozen=True)
class CallInputs:
    """Positional and keyword arguments of one call, for a module that takes both."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def tensors_of(arguments: object) -> Iterator[torch.Tensor]:
    """Every tensor of some arguments: in tuples, lists, mappings, dataclasses and plain objects, each object once."""
    seen: set[int] = set()
    stack = [arguments]
    while stack:
        item = stack.pop()
        if type(item) in PLAIN:
            continue
        if isinstance(item, torch.Tensor):
            yield item
            continue
        if id(item) in seen or isinstance(item, (type, nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(reversed(list(item)))
        elif isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        else:
            stack.extend(reversed(list(attributes_of(item).values())))


def attributes_of(item: object) -> Mapping[str, Any]:
    """The attributes of an object that holds data; empty for functions, numbers and objects without any."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name, None) for field in dataclasses.fields(item)}
    return getattr(item, "__dict__", None) or {}


def is_cache(item: object) -> bool:
    """Whether `item` keeps keys and values of attention, by the protocol that such caches share."""
    return callable(getattr(item, "get_seq_length", None)) and callable(getattr(item, "update", None))


def replaced(value: object, tensors: Mapping[int, torch.Tensor]) -> Any:
    """A deep copy of `value` with tensors replaced by their id."""
    return copy.deepcopy(value, dict(tensors))


def describe_call(arguments: Arguments) -> list[Described]:
    """Shapes, types and plain values of the arguments as data that JSON holds; `example_of` makes inputs of it."""
    return [described(value) for value in arguments]


def example_of(call: Sequence[Described]) -> CallInputs:
    """Inputs of the shapes and types that `describe_call` wrote down: zeros, and plain values as they were."""
    args, kwargs = examples(call)
    return CallInputs(args, kwargs)
