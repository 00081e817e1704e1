"""CIFAR-100 in two loaders: training and selection."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader

from fxprune.data import cifar100
from fxprune.data.loops import train_one_epoch, validate

__all__ = ["get_dataloader", "train_one_epoch", "validate"]


def get_dataloader(
    data_path: str | Path,
    img_size: int = 224,
    batch_size: int = 128,
    worker: int = 4,
    distributed: bool = False,
    download: bool = False,
    mean: tuple[float, ...] = cifar100.MEAN,
    std: tuple[float, ...] = cifar100.STD,
    check_integrity: bool = True,
) -> tuple[DataLoader, DataLoader]:
    """The first two loaders of `fxprune.data.cifar100.get_dataloader`."""
    train, selection, _ = cifar100.get_dataloader(
        data_path, img_size, batch_size, worker, distributed=distributed, download=download, mean=mean, std=std,
        check_integrity=check_integrity,
    )  # fmt: skip
    return train, selection
