"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as torchvision reads them: the Python archives, unpacked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Protocol

from fxprune.data.errors import DataError
from fxprune.data.loaders import Labelled, Loaders, make_loaders
from fxprune.torchvision_support import ensure_torchvision
from passes.arguments import user_path

SIDE = 32
# What the pickles of the archives need besides text, lists and dicts: arrays, as each NumPy and protocol says them.
ARRAYS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Archive(Protocol):
    """What a class of torchvision says of its archive: files with their MD5 sums, and where it is to be had."""

    base_folder: str
    train_list: list[tuple[str, str]]
    test_list: list[tuple[str, str]]
    meta: dict[str, str]
    url: str


def cifar_loaders(
    name: str,
    data_path: str | Path,
    img_size: int = SIDE,
    batch_size: int = 128,
    workers: int = 4,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    distributed: bool = False,
    download: bool = False,
    selection: float = 0.1,
    seed: int = 0,
    check_integrity: bool = True,
) -> Loaders:
    """Loaders for training (random crop and flip), selection (held out of the training images) and test.

    name: of torchvision's data set, "CIFAR10" or "CIFAR100". `data_path` holds the folder of the unpacked Python
    archive. `mean`, `std`: of the training images, a channel. `selection`: the share of each class that is held out,
    chosen by `seed`. `distributed`: each process of the group sees its part. `check_integrity`: the files are the
    official ones, by MD5.
    """
    ensure_torchvision()
    from torchvision import transforms

    train, test = (open_cifar(name, data_path, part, download, check_integrity) for part in (True, False))
    resize = [] if img_size == SIDE else [transforms.Resize((img_size, img_size))]
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = transforms.Compose(
        [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip(), *resize, *tensor]
    )
    return make_loaders(
        train, test, augment, transforms.Compose([*resize, *tensor]),
        batch_size=batch_size, workers=workers, selection=selection, distributed=distributed, seed=seed,
    )  # fmt: skip


def open_cifar(name: str, data_path: str | Path, train: bool, download: bool, check_integrity: bool) -> Labelled:
    """torchvision's data set over the files in `data_path`; one that is missing or not the official one is a DataError.

    `check_integrity=False` takes any files of the layout, and as many of the training batches as are there. Files
    whose MD5 is not checked are unpickled only if they hold nothing but arrays, text and numbers.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder = user_path(data_path) / kind.base_folder
    if not download:
        check_present(name, kind, folder)
    if not check_integrity:
        kind = _unchecked(kind, folder)
    try:
        return kind(str(user_path(data_path)), train=train, download=download)
    except RuntimeError as error:
        raise DataError(
            f"{name}: the files in {folder} are not the official ones ({error}). Unpack {kind.url} again, or, for "
            "data of your own in this layout, pass check_integrity=False."
        ) from error


def check_present(name: str, kind: type[Archive], folder: Path) -> None:
    """Raise where the data set is not there at all, with the way to get it."""
    wanted = [entry[0] for entry in kind.train_list[:1] + kind.test_list[:1]] + [kind.meta["filename"]]
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        there = "the folder does not exist" if not folder.is_dir() else f"{', '.join(missing)} not found"
        raise DataError(
            f"{name}: no data in {folder} ({there}). Get it with torchvision.datasets.{name}({str(folder.parent)!r}, "
            f"download=True), or unpack {kind.url} in {folder.parent}."
        )


def _unchecked(kind: type[Archive], folder: Path) -> type:
    """The data set class for files whose checksums are not known."""
    train = [(file, None) for file, _ in kind.train_list if (folder / file).is_file()]
    test = [(file, None) for file, _ in kind.test_list]
    meta: dict[str, str | None] = {**kind.meta, "md5": None}
    for file in [*(file for file, _ in train + test), kind.meta["filename"]]:
        check_plain(folder / file)
    return type(kind.__name__, (kind,), {"train_list": train, "test_list": test, "meta": meta})


def check_plain(path: Path) -> None:
    """Raise unless a pickle holds nothing but arrays, text and numbers, which cannot run code when it is read."""
    try:
        with open(path, "rb") as file:
            _Arrays(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: this is no batch of CIFAR images: {error or type(error).__name__}") from error


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays, text and numbers are read")
        return super().find_class(module, name)
