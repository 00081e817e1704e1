"""CIFAR-100: loaders of 32 x 32 colour images in 100 classes, and the functions that train and validate on them."""

from __future__ import annotations

from pathlib import Path

from fxprune.data.cifar import cifar_loaders
from fxprune.data.loaders import Loaders
from fxprune.data.loops import train_one_epoch, validate

__all__ = ["CLASSES", "get_dataloader", "train_one_epoch", "validate"]

CLASSES = 100
# Of the training images, a channel.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)


def get_dataloader(
    data_path: str | Path,
    img_size: int = 32,
    batch_size: int = 128,
    workers: int = 4,
    *,
    distributed: bool = False,
    download: bool = False,
    selection: float = 0.1,
    seed: int = 0,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    check_integrity: bool = True,
) -> Loaders:
    """Loaders for training (random crop and flip), selection (held out of the training images) and test.

    `data_path` holds the folder of the unpacked Python archive. `selection`: the share of each class that is held
    out, chosen by `seed`. `distributed`: each process of the group sees its part. `check_integrity`: the files are
    the official ones, by MD5.

    >>> train, selection, test = get_dataloader("data", batch_size=256)  # doctest: +SKIP
    """
    return cifar_loaders(
        "CIFAR100", data_path, img_size, batch_size, workers, distributed=distributed, download=download,
        selection=selection, seed=seed, mean=mean, std=std, check_integrity=check_integrity,
    )  # fmt: skip
