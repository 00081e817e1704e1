"""Conditions in a program, on values (`if x.max() > 3`) or on sizes (`if len(x) > 8`), answered otherwise than on the
example: the other branch."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from passes.process.source_lines import users_line
from passes.process.torch_patches import sizes_by_len
from passes.stream.watched_sizes import SIZES, Sizes, watched


class SizeConditions(TorchFunctionMode):
    """Inside, the conditions on sizes that the program itself asks are listed.

    asked: the sizes of tensors that entered each of them when it was asked first, by its name: ``model.py:12 (size)``,
    and ``(size 2)`` for the second of a line. looked_up: the same by lines, for what is looked up in a dictionary or a
    set. whether: only that there are some is asked for, which takes less: `len` of a tensor, whatever becomes of it,
    counts as one then. functions: those whose answers are looked at. by_len: inside, `len` is one of them; it alone is
    entered where another function mode calls `seen`.

    >>> with SizeConditions() as mode:
    ...     long = torch.ones(3, 9).shape[1] > 8
    >>> list(mode.asked.values())
    [(9,)]
    """

    functions: frozenset[Any] = SIZES | {torch.Tensor.__len__}

    def __init__(self, whether: bool = False) -> None:
        super().__init__()
        self.asked: dict[str, Sizes] = {}
        self.looked_up: dict[str, Sizes] = {}
        self._known: dict[str, dict[int, str]] = {}
        self.by_len = nullcontext() if whether else sizes_by_len()

    def __enter__(self) -> SizeConditions:
        self.by_len.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.by_len.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        return self.seen(func, answer) if func in self.functions else answer

    def seen(self, func: Any, answer: Any) -> Any:
        """What the program gets for the answer of one of `functions`."""
        if func in SIZES:
            return watched(answer, self)
        if func is torch.Tensor.__len__:  # Python makes a plain integer of it
            self.asked.setdefault("len", (answer,))
        return answer

    @property
    def any(self) -> bool:
        """Whether the program has asked something of sizes."""
        return bool(self.asked or self.looked_up)

    def look_up(self, sizes: Sizes, frame: FrameType) -> None:
        self.looked_up.setdefault(users_line(frame), sizes)

    def compare(self, sizes: Sizes, answer: bool, frame: FrameType) -> bool:
        line = users_line(frame)
        known = self._known.setdefault(line, {})
        name = known.setdefault(frame.f_lasti, f"{line} (size{f' {len(known) + 1}' if known else ''})")
        self.asked.setdefault(name, sizes)
        return self.answered(name, answer)

    def answered(self, name: str, answer: bool) -> bool:
        """What the program gets for the answer to this condition."""
        return answer


class Turned(SizeConditions):
    """Inside, the first time that the program asks the condition `line`, it gets the opposite answer.

    line: the line of a condition on values, or the name of one on sizes (see `SizeConditions`). Two networks of one
    program take the same branches so, whatever their sizes. turned: whether it was asked.

    >>> with Turned("model.py:12") as mode:
    ...     bool(torch.tensor(True)), mode.turned
    (True, False)
    """

    functions = SizeConditions.functions | {torch.Tensor.__bool__}

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line, self.turned = line, False

    def seen(self, func: Any, answer: Any) -> Any:
        if func is torch.Tensor.__bool__ and users_line(sys._getframe(1)) == self.line:
            return self.answered(self.line, answer)
        return super().seen(func, answer)

    def answered(self, name: str, answer: bool) -> bool:
        if self.turned or name != self.line:
            return answer
        self.turned = True
        return not answer
