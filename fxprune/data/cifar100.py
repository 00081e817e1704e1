"""CIFAR-100: loaders of 32 x 32 colour images in 100 classes, and the functions that train and validate on them.

>>> train, selection, test = get_dataloader("data", batch_size=256)  # doctest: +SKIP
"""

from __future__ import annotations

from functools import partial

from fxprune.data.cifar import cifar_loaders
from fxprune.data.loops import train_one_epoch, validate

__all__ = ["CLASSES", "get_dataloader", "train_one_epoch", "validate"]

CLASSES = 100
# Of the training images, a channel.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)

get_dataloader = partial(cifar_loaders, "CIFAR100", mean=MEAN, std=STD)
