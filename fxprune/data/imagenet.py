"""ImageNet, or any images in its layout: `train/<class>/*.jpg` and `val/<class>/*.jpg`, read by torchvision's
ImageFolder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.data.errors import DataError
from fxprune.data.loaders import Loaders, make_loaders
from fxprune.data.loops import train_one_epoch, validate
from fxprune.torchvision_support import ensure_torchvision
from passes.arguments import user_path

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

__all__ = ["CLASSES", "get_dataloader", "train_one_epoch", "validate"]

CLASSES = 1000
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def get_dataloader(
    data_path: str | Path,
    img_size: int = 224,
    batch_size: int = 128,
    workers: int = 4,
    *,
    distributed: bool = False,
    selection: float = 0.02,
    seed: int = 0,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Loaders:
    """Loaders for training (random crop and flip), selection (held out of `train`) and test (all of `val`).

    `selection`: the share of each class that is held out of training, chosen by `seed`. `distributed`: each process
    of the group sees its part. Images for selection and test are resized to 256/224 of `img_size` and cropped in the
    middle.

    >>> train, selection, test = get_dataloader("imagenet", batch_size=256)  # doctest: +SKIP
    """
    ensure_torchvision()
    from torchvision import transforms

    train, test = (open_folder(user_path(data_path), part) for part in ("train", "val"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"imagenet: {data_path}/train and {data_path}/val hold different classes ({', '.join(odd[:5])}"
            f"{', ...' if len(odd) > 5 else ''}); every class needs a folder in both."
        )
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = transforms.Compose([transforms.RandomResizedCrop(img_size), transforms.RandomHorizontalFlip(), *tensor])
    plain = transforms.Compose(
        [transforms.Resize(round(img_size * 256 / 224)), transforms.CenterCrop(img_size), *tensor]
    )
    return make_loaders(
        train, test, augment, plain,
        batch_size=batch_size, workers=workers, selection=selection, distributed=distributed, seed=seed,
    )  # fmt: skip


def open_folder(root: Path, part: str) -> ImageFolder:
    """torchvision's ImageFolder over `root/part`; one that is missing or empty is a DataError."""
    from torchvision import datasets

    folder = root / part
    try:
        return datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        what = str(error).rstrip(".") if folder.is_dir() else "the folder does not exist"
        raise DataError(
            f"imagenet: no images in {folder} ({what}). Expected {root}/train/<class>/*.jpg and "
            f"{root}/val/<class>/*.jpg; "
            "ImageNet-1k itself is to be had, after registration, at https://image-net.org/download.php."
        ) from error
