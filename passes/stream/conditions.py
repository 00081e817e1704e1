"""Conditions on values in a program (`if x.max() > 3`), answered otherwise than the example does: the other branch."""

from __future__ import annotations

import sys

import torch
from torch.overrides import TorchFunctionMode

from passes.process.source_lines import users_line


class Turned(TorchFunctionMode):
    """Inside, the first condition that the program asks at `line` gets the opposite answer.

    Two networks of one program take the same branches so, whatever their sizes. turned: whether it was asked.

    >>> with Turned("model.py:12") as mode:
    ...     bool(torch.tensor(True)), mode.turned
    (True, False)
    """

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line, self.turned = line, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if func is torch.Tensor.__bool__ and not self.turned and users_line(sys._getframe(1)) == self.line:
            self.turned = True
            return not answer
        return answer
