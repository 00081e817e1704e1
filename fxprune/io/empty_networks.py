"""Networks whose weights take no memory: their sizes are known, their values are in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _EmptyOnMeta(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if func is torch.empty and not (kwargs or {}).get("out"):
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


@contextmanager
def empty_weights() -> Iterator[None]:
    """Inside, layers that are made keep their weights on the meta device.

    Unlike under ``torch.device("meta")``, what a constructor computes (tables of positions, frequencies, masks) has its
    values. Weights that a class makes of zeros, ones or random numbers by itself have theirs, too.

    >>> with empty_weights():
    ...     layer = torch.nn.Linear(8, 4)
    >>> layer.weight.is_meta
    True
    """
    with _EmptyOnMeta():
        yield
