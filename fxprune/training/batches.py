"""Batches with labels as users hand them in: checked before the network sees them, and on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn
from torch.utils.data import Dataset

from fxprune.errors import InputError
from passes import PassError
from passes.arguments import got, read_from
from passes.statistics import Batch, batches_of


def check_iterable(batches: object, where: str) -> None:
    iterable = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if isinstance(batches, str | bytes) or not iterable or getattr(batches, "ndim", 1) == 0:
        raise InputError(
            f"{where}: got {got(batches)}; expected batches of (inputs, targets) or of dicts, such as a DataLoader."
        )
    if isinstance(batches, Dataset):
        raise InputError(
            f"{where}: got a data set of single samples ({type(batches).__name__}); expected batches: "
            "DataLoader(dataset, batch_size=64)."
        )


def begin_epoch(loader: object, epoch: int) -> None:
    """Tell a loader, or its sampler, which epoch it is: distributed samplers shuffle anew by it."""
    batches = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        if callable(tell := getattr(holder, "set_epoch", None)):
            tell(epoch)
            return


def labelled(network: nn.Module, batches: Iterable[object], where: str) -> Iterator[Batch]:
    """Each batch with its labels. Raises InputError for what does not come in batches, or is no labelled one.

    A batch is a pair (inputs, targets), in which inputs are a tensor, a tuple of arguments or a mapping of keywords; or
    one mapping that holds inputs and labels by name (of a Hugging Face collator, say).
    """
    check_iterable(batches, where)
    yield from _checked(network, (_pair(batch, where) for batch in read_from(batches, where, InputError)), where)


def unlabelled(network: nn.Module, batches: object, where: str, inputs: int | None = None) -> Iterator[Batch]:
    """Each batch of inputs, with labels or without: as `passes.statistics.batches_of` reads them."""
    return _checked(network, batches, where, inputs)


def _checked(network: nn.Module, batches: object, where: str, inputs: int | None = None) -> Iterator[Batch]:
    try:
        yield from batches_of(network, batches, inputs)
    except PassError as error:
        raise InputError(f"{where}: {error}") from error


def _pair(batch: object, where: str) -> object:
    if isinstance(batch, Mapping | Batch):
        return batch
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"{where}: a batch is {got(batch)}; expected a pair, (inputs, targets), or a dict.")
    inputs, targets = batch
    if isinstance(inputs, Mapping):
        return batch
    return Batch(inputs if isinstance(inputs, tuple) else (inputs,), {}, targets)
