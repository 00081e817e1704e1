"""ImageNet in two loaders: training and selection."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader

from fxprune.data import imagenet
from fxprune.data.loops import train_one_epoch, validate

__all__ = ["get_dataloader", "train_one_epoch", "validate"]


def get_dataloader(
    data_path: str | Path, img_size: int = 224, batch_size: int = 128, worker: int = 4, distributed: bool = False
) -> tuple[DataLoader, DataLoader]:
    """The first two loaders of `fxprune.data.imagenet.get_dataloader`."""
    train, selection, _ = imagenet.get_dataloader(data_path, img_size, batch_size, worker, distributed=distributed)
    return train, selection
