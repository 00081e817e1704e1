"""Sizes of tensors that tell when the program compares them: integers and ratios, and what is computed from these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from passes.process.source_lines import is_users

# (what was compared, the answer, the frame of the program that asks) -> the answer that the program gets
Answer = Callable[[tuple[Any, ...], bool, Any], bool]

SIZES: frozenset[Any] = frozenset(
    {torch.Tensor.shape.__get__, torch.Tensor.size, torch.Tensor.numel, torch.Tensor.nelement}  # type: ignore[attr-defined]
)


def watched(found: Any, answer: Answer) -> Any:
    """`found`, a number or a shape, with every integer and ratio watched; anything else as it is."""
    if isinstance(found, tuple):
        return torch.Size([watched(size, answer) for size in found])
    if isinstance(found, bool) or not isinstance(found, int | float):
        return found
    made = _WatchedSize(found) if isinstance(found, int) else _WatchedRatio(found)
    made.answer = answer
    return made


class _WatchedSize(int):
    answer: Answer

    def __reduce__(self) -> Any:
        return int, (int(self),)  # copies and pickles are plain numbers

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


class _WatchedRatio(float):
    answer: Answer

    def __reduce__(self) -> Any:
        return float, (float(self),)

    def __deepcopy__(self, memo: Any) -> float:
        return float(self)


def _method(kind: Any, name: str, compares: bool) -> Callable[..., Any]:
    function = getattr(kind, name)

    def method(self: Any, *others: Any) -> Any:
        result = function(self, *others)
        if result is NotImplemented:
            return result
        if not compares:
            return watched(result, self.answer)
        frame = sys._getframe(1)
        if not is_users(frame):
            return result
        return self.answer((kind(self), *others), result, frame)

    return method


_ARITHMETIC = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow")
for _made, _kind in ((_WatchedSize, int), (_WatchedRatio, float)):
    for _name in ("eq", "ne", "lt", "le", "gt", "ge", "bool"):
        setattr(_made, f"__{_name}__", _method(_kind, f"__{_name}__", True))
    for _name in (*_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC), "neg", "abs", "floor", "ceil", "round"):
        setattr(_made, f"__{_name}__", _method(_kind, f"__{_name}__", False))
    _made.__hash__ = _kind.__hash__  # type: ignore[method-assign]
