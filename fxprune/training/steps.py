"""Steps of an optimizer: the one loop that all training goes through, its learning rates, and batches without end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from fxprune.errors import InputError

Item = TypeVar("Item")


def optimized(
    optimizer: torch.optim.Optimizer, batches: Iterable[Item], loss: Callable[[Item], Tensor],
    share: Callable[[int], float] | None = None, scaler: torch.amp.GradScaler | None = None,
    between: Callable[[], None] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """One step for each batch; yields the loss of each, detached, after its step.

    share(step), counted from 0: of the peak learning rates, which are the optimizer's at the beginning; its groups keep
    them as `initial_lr`, as under torch's schedulers. scaler: for gradients in half precision. between: called when the
    gradients are there, before the step.
    """
    for step, batch in enumerate(batches):
        if share is not None:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * share(step)
        optimizer.zero_grad(set_to_none=True)
        found = loss(batch)
        (found if scaler is None else scaler.scale(found)).backward()
        if between is not None:
            between()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        yield found.detach()


def rate(done: float, whole: float, warmup: float, least: float = 0.0) -> float:
    """The share of the peak learning rate after `done` of `whole` steps or epochs: a line up, half a cosine down.

    The line takes `warmup`, at most half of the whole, and begins at one step (`least`), not at zero, which would
    waste it.
    """
    warmup = min(warmup, whole / 2)
    if done < warmup:
        return min(1.0, (done + least) / (warmup + least))
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(whole - warmup, 1e-12)))


def repeated(batches: Callable[[], Iterable[Item]], where: str) -> Iterator[Item]:
    """The batches, over and over: `batches()` begins anew. Raises InputError where it gives none."""
    while True:
        empty = True
        for batch in batches():
            empty = False
            yield batch
        if empty:
            raise InputError(f"{where}: the data holds no batch, or can be passed once only; pass a list or a loader.")
