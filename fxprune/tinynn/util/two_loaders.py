"""The loaders of `fxprune.data` by the names and in the number that scripts of TinyNeuralNetwork expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.utils.data import DataLoader

from fxprune.data.loaders import Loaders


def two_loaders(
    loaders: Callable[..., Loaders],
    data_path: str | Path,
    img_size: int = 224,
    batch_size: int = 128,
    worker: int = 4,
    distributed: bool = False,
    download: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    check_integrity: bool = True,
) -> tuple[DataLoader, DataLoader]:
    """The loaders for training and selection. mean, std: of the training images, a channel; None: those of the set."""
    given = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    train, selection, _ = loaders(
        data_path, img_size, batch_size, worker, distributed=distributed, download=download,
        check_integrity=check_integrity, **given,
    )  # fmt: skip
    return train, selection
