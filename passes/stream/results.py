"""What a caller can read once a network has run: tensors, numbers and texts, in containers and objects."""

from __future__ import annotations

import dataclasses
import gc
import types
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes.graph.annotations import Annotation
from passes.process.outside_state import filled_cells
from passes.stream.call_arguments import attributes_of, is_cache

_LEAVES = (Tensor, Number, np.generic, str, bytes, bytearray, range)
_LISTED = (list, tuple, set, frozenset, deque, KeysView, ValuesView, ItemsView)
# They lead to the whole program, or to its analysis.
_CLOSED = (type, types.ModuleType, types.FrameType, types.CodeType, fx.Graph, Annotation)


def tensors_in(result: object, caches: bool = False) -> list[Tensor]:
    """Every tensor that can be read in `result`.

    caches: whether to look into objects that keep keys and values of attention for later calls. They are state that a
    module hands to itself, and no result that a caller reads.
    """
    return [leaf for leaf in _leaves(result, caches) if isinstance(leaf, Tensor)]


def values_in(result: object) -> list[Any]:
    """Every tensor, number and text that can be read in `result`; arrays of NumPy as tensors, keys of mappings too."""
    return [value for leaf in _leaves(result, False) for value in _comparable(leaf)]


def plain_values_in(result: object) -> list[Any]:
    """Of `values_in`, what is no tensor in the result."""
    return [v for leaf in _leaves(result, False) if not isinstance(leaf, Tensor) for v in _comparable(leaf)]


class Left:
    """What a call leaves in its arguments, where its caller reads it: tensors put there, and values written over."""

    def __init__(self, arguments: object) -> None:
        self._arguments = arguments
        self._before = {id(t): (t, None if t.is_meta else t.detach().clone()) for t in tensors_in(arguments)}

    def tensors(self) -> list[Tensor]:
        """After the call, in order; of what was written over, none on the meta device, where sizes are all there is."""
        return [t for t in tensors_in(self._arguments) if id(t) not in self._before or self._is_written(t)]

    def beside(self, result: object) -> object:
        """All that the caller can read: the result, and, where there are some, these tensors with it."""
        left = self.tensors()
        return (result, left) if left else result

    def _is_written(self, tensor: Tensor) -> bool:
        before = self._before[id(tensor)][1]
        return before is not None and tensor.layout == torch.strided and not torch.equal(before, tensor)


def called(function: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Call it; all that its caller can read, as by `Left.beside`."""
    left = Left((args, kwargs))
    return left.beside(function(*args, **kwargs))


def _leaves(result: object, caches: bool) -> Iterator[object]:
    """What holds nothing else, in order; what stands in several objects once for each, each object once."""
    seen: dict[int, object] = {}  # kept alive, so that no other object gets the id of one
    stack = [result]
    while stack:
        item = stack.pop()
        if isinstance(item, _LEAVES):
            yield item
        elif id(item) not in seen:
            seen[id(item)] = item
            parts = _parts(item, caches)
            if parts is None:
                yield item
            else:
                stack.extend(reversed(parts))


def _parts(item: Any, caches: bool) -> list[object] | None:
    """What an object holds directly; None for an array of numbers."""
    if isinstance(item, np.ndarray):
        return list(item.flat) if item.dtype.hasobject else None
    if isinstance(item, (nn.ParameterList, nn.ParameterDict)):
        return list(item if isinstance(item, nn.ParameterList) else item.values())
    if isinstance(item, (nn.Module, *_CLOSED)):
        return []
    if isinstance(item, types.FunctionType):
        enclosing = [cell.cell_contents for cell in filled_cells(item)]
        return [*enclosing, *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
    if isinstance(item, _LISTED):
        return _with_attributes(item, list(item))
    if isinstance(item, Mapping):
        return _with_attributes(item, [*item.keys(), *item.values()])
    if not caches and is_cache(item):
        return []
    if dataclasses.is_dataclass(item):
        return list(attributes_of(item).values())
    attributes = attributes_of(item)
    own = [*attributes.values()]
    known = {id(attributes), *map(id, own)}
    # slots, what an iterator still has to give, the arguments of a partial, the object of a method
    return [*own, *(held for held in gc.get_referents(item) if id(held) not in known)]


def _with_attributes(item: object, parts: list[object]) -> list[object]:
    """The parts of a container, and the attributes of its own class that are no other view of them."""
    known = set(map(id, parts))
    more = getattr(item, "__dict__", {}).values()
    return [*parts, *(held for held in more if id(held) not in known and not isinstance(held, Mapping))]


def _comparable(leaf: object) -> Iterator[Any]:
    if isinstance(leaf, np.ndarray):
        yield torch.from_numpy(np.array(leaf)) if leaf.dtype.kind in "biufc" else leaf.tobytes()
    elif isinstance(leaf, np.generic):
        yield leaf.item()
    else:
        yield leaf
