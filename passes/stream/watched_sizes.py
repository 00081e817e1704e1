"""Sizes of tensors that tell when the program compares them: integers and ratios, and what is computed from these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch

from passes.process.source_lines import is_users

SIZES: frozenset[Any] = frozenset(
    {torch.Tensor.shape.__get__, torch.Tensor.size, torch.Tensor.numel, torch.Tensor.nelement}  # type: ignore[attr-defined]
)


Sizes = tuple[float, ...]


class Watcher(Protocol):
    """Called with what the program asks of sizes; `frame` is where it does."""

    def compare(self, sizes: Sizes, answer: bool, frame: FrameType) -> bool:
        """The answer that the program gets to a comparison into which these sizes enter."""

    def look_up(self, sizes: Sizes, frame: FrameType) -> None:
        """What was made of these sizes is looked up in a dictionary or a set, and need not be compared there."""


def watched(found: Any, watcher: Watcher, sizes: Sizes = ()) -> Any:
    """`found`, a number or a shape, with every integer and ratio watched; anything else as it is.

    sizes: of tensors, that it was computed from; by default it is such a size itself.
    """
    if isinstance(found, tuple):
        parts = [watched(part, watcher, sizes) for part in found]
        return torch.Size(parts) if isinstance(found, torch.Size) else tuple(parts)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return found
    made = _WatchedSize(found) if isinstance(found, int) else _WatchedRatio(found)
    made.watcher, made.sizes = watcher, sizes or (found,)
    return made


class _WatchedSize(int):
    watcher: Watcher
    sizes: Sizes

    def __reduce__(self) -> Any:
        return int, (int(self),)  # copies and pickles are plain numbers

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


class _WatchedRatio(float):
    watcher: Watcher
    sizes: Sizes

    def __reduce__(self) -> Any:
        return float, (float(self),)

    def __deepcopy__(self, memo: Any) -> float:
        return float(self)


def _comparison(kind: Any, name: str) -> Callable[..., Any]:
    function = getattr(kind, name)

    def method(self: Any, *others: Any) -> Any:
        result = function(self, *others)
        frame = sys._getframe(1)
        if result is NotImplemented or not is_users(frame):
            return result
        return self.watcher.compare(_entering(self, *others), result, frame)

    return method


def _operation(kind: Any, name: str) -> Callable[..., Any]:
    function, of_ratios = getattr(kind, name), getattr(float, name, None)

    def method(self: Any, *others: Any) -> Any:
        result = function(self, *others)
        if result is NotImplemented and of_ratios is not None and type(others[0]) is float:
            result = of_ratios(float(self), *others)  # the other's own method would give a plain number
        return watched(result, self.watcher, _entering(self, *others))

    return method


def _entering(*numbers: Any) -> Sizes:
    """The sizes that some numbers were computed from, each once."""
    return tuple(dict.fromkeys([size for number in numbers for size in getattr(number, "sizes", ())]))


def _hash(kind: Any) -> Callable[..., int]:
    def method(self: Any) -> int:
        frame = sys._getframe(1)
        if is_users(frame):
            self.watcher.look_up(self.sizes, frame)
        found: int = kind.__hash__(self)
        return found

    return method


_OF_BOTH = ("add", "sub", "mul", "floordiv", "truediv", "mod", "divmod", "pow")
_OF_SIZES = ("and", "or", "xor", "lshift", "rshift")
for _made, _kind, _names in ((_WatchedSize, int, _OF_BOTH + _OF_SIZES), (_WatchedRatio, float, _OF_BOTH)):
    for _name in ("eq", "ne", "lt", "le", "gt", "ge", "bool"):
        setattr(_made, f"__{_name}__", _comparison(_kind, f"__{_name}__"))
    for _name in (*_names, *(f"r{name}" for name in _names), "neg", "abs", "floor", "ceil", "round"):
        setattr(_made, f"__{_name}__", _operation(_kind, f"__{_name}__"))
    _made.__hash__ = _hash(_kind)  # type: ignore[method-assign]
