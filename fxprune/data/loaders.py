"""From a data set to three loaders: training, held-out selection, test. The selection data is split off the training
data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from fxprune.data.errors import DataError

Transform = Callable[[object], torch.Tensor]


class Labelled(Protocol):
    """A data set of (image, label) that lists its labels."""

    targets: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[object, int]: ...


class Loaders(NamedTuple):
    """Three loaders of (images, labels). Candidates are trained on the first and chosen by the second; the test data
    is for the end."""

    train: DataLoader
    selection: DataLoader
    test: DataLoader


class View(Dataset):
    """Some of the images of a data set, with a transform of their own; the images themselves are not copied."""

    def __init__(self, data: Labelled, indices: Sequence[int] | np.ndarray, transform: Transform):
        self.data, self.indices, self.transform = data, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        image, label = self.data[int(self.indices[position])]
        return self.transform(image), label


class Shard(Sampler[int]):
    """Every `world`-th image from the `rank`-th on: each image is seen by exactly one process, none twice.

    A DistributedSampler repeats images until all processes have as many, and so counts some of them twice.
    """

    def __init__(self, size: int, rank: int, world: int):
        self.positions = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


def split(labels: Sequence[int], share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the selection part: `share` of each class is held out, chosen by `seed` alone.

    >>> train, selection = split([0, 0, 0, 0, 1, 1, 1, 1], share=0.25)
    >>> len(train), len(selection)
    (6, 2)
    """
    if not 0 < share < 1:
        raise DataError(f"selection: got {share!r}; expected the share of the training data to hold out, 0 to 1.")
    classes, random = np.asarray(labels), np.random.default_rng(seed)
    held = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        held.append(random.permutation(members)[: round(len(members) * share)])
    selection = np.sort(np.concatenate(held))
    if not len(selection) or len(selection) == len(classes):
        raise DataError(
            f"selection: {share:g} of {len(classes)} images in {len(held)} classes leaves one of the two parts empty; "
            "pass another share, or more images."
        )
    return np.setdiff1d(np.arange(len(classes)), selection), selection


def make_loaders(
    train: Labelled,
    test: Labelled,
    augment: Transform,
    plain: Transform,
    *,
    batch_size: int,
    workers: int,
    selection: float,
    distributed: bool,
    seed: int,
) -> Loaders:
    """Three loaders of two data sets. `augment` is for training alone.

    The order of the training data is drawn from torch's own seed, so that a candidate's seed decides it. The last
    batch of an epoch is left out where it is not full: one image is too few for batch normalisation.
    """
    fitted, held = split(train.targets, selection, seed)
    learned, chosen = View(train, fitted, augment), View(train, held, plain)
    tested = View(test, range(len(test)), plain)
    loader = partial(DataLoader, batch_size=batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())
    rank, world = _place() if distributed else (0, 1)
    shuffled: Sampler[int] | None = (
        DistributedSampler(learned, world, rank, shuffle=True, seed=seed) if distributed else None
    )
    return Loaders(
        loader(learned, shuffle=shuffled is None, sampler=shuffled, drop_last=len(learned) >= batch_size * world),
        *(loader(part, sampler=Shard(len(part), rank, world) if distributed else None) for part in (chosen, tested)),
    )


def _place() -> tuple[int, int]:
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        raise DataError("distributed=True: there is no process group; call torch.distributed.init_process_group first.")
    return distributed.get_rank(), distributed.get_world_size()
