"""CIFAR-100 in two loaders: training and selection."""

from __future__ import annotations

from functools import partial

from fxprune.data import cifar100
from fxprune.data.loops import train_one_epoch, validate
from fxprune.tinynn.util.two_loaders import two_loaders

__all__ = ["get_dataloader", "train_one_epoch", "validate"]

get_dataloader = partial(two_loaders, cifar100.get_dataloader)
