"""The training helpers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fxprune.search.long_training import train
from fxprune.training.context import DLContext, get_device

__all__ = ["AverageMeter", "DLContext", "get_device", "get_module_device", "train"]


@dataclass
class AverageMeter:
    """The last value, the sum, the count and the mean of what `update` was given."""

    val: float = 0
    avg: float = 0
    sum: float = 0
    count: int = 0

    def reset(self) -> None:
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        """`val` is the mean of `n` values."""
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def get_module_device(module: nn.Module) -> torch.device | None:
    """Where the first parameter of a module is; None where it has none."""
    return next((parameter.device for parameter in module.parameters()), None)
