"""Batches of (inputs, targets) as users hand them in: checked before the network sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import Dataset

from fxprune.errors import InputError
from passes.arguments import got


def check_iterable(batches: object, where: str) -> None:
    if isinstance(batches, str | bytes) or not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
        raise InputError(f"{where}: got {got(batches)}; expected batches of (inputs, targets), such as a DataLoader.")
    if isinstance(batches, Dataset):
        raise InputError(
            f"{where}: got a data set of single samples ({type(batches).__name__}); expected batches: "
            "DataLoader(dataset, batch_size=64)."
        )


def pairs(batches: Any, where: str) -> Iterator[tuple[Any, Any]]:
    """Each batch as (inputs, targets). Raises InputError for what does not come in batches, or not in pairs."""
    check_iterable(batches, where)
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(f"{where}: a batch is {got(batch)}; expected a pair, (inputs, targets).")
        yield batch[0], batch[1]
