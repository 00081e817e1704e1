"""Data sets that the users of NetAdapt start from, and functions that train and validate on them."""

from fxprune.data import cifar10, cifar100, imagenet
from fxprune.data.errors import DataError
from fxprune.data.loaders import Loaders
from fxprune.data.loops import Measures, train_one_epoch, validate, validation

__all__ = [
    "DataError",
    "Loaders",
    "Measures",
    "cifar10",
    "cifar100",
    "imagenet",
    "train_one_epoch",
    "validate",
    "validation",
]
