"""CIFAR-10: loaders of 32 x 32 colour images in 10 classes, and the functions that train and validate on them.

>>> train, selection, test = get_dataloader("data", batch_size=256)  # doctest: +SKIP
"""

from __future__ import annotations

from functools import partial

from fxprune.data.cifar import cifar_loaders
from fxprune.data.loops import train_one_epoch, validate

__all__ = ["CLASSES", "get_dataloader", "train_one_epoch", "validate"]

CLASSES = 10
# Of the training images, a channel.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

get_dataloader = partial(cifar_loaders, "CIFAR10", mean=MEAN, std=STD)
