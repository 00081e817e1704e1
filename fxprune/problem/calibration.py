"""Calibration data of a search: batches that are fitted to, and held-out ones that judge."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from passes import Coupling, PassError
from passes.process.torch_private import pytree
from passes.statistics import Batch, batches_of
from passes.statistics.observing import inputs_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Batches on the network's device: `fitted` are summed up and fitted to, `held` only judge.

    digest: a SHA-256 over all their tensors.
    """

    fitted: list[Batch]
    held: list[Batch]
    digest: str


def calibration_of(dense: nn.Module, coupling: Coupling, batches: object, most: int = 4096) -> Calibration:
    """The first batches of a caller, up to `most` samples, checked; the last fifth of the samples is held out.

    Raises InputError where there is none, one does not fit, or a single sample would have to serve for both.
    """
    listed: list[Batch] = []
    samples = 0
    try:
        for batch in batches_of(dense, batches, inputs_of(coupling)):
            listed.append(batch)
            samples += max(batch.size, 1)
            if samples >= most:
                break
    except PassError as error:
        raise InputError(f"netadapt: calibration: {error}") from error
    if not listed:
        raise InputError("netadapt: calibration holds no batch; pass at least one, of what the network takes.")
    digest = _digest(listed)
    if len(listed) >= 5:
        cut = len(listed) - len(listed) // 5
        return Calibration(listed[:cut], listed[cut:], digest)
    fitted, held = [], []
    for batch in listed:
        cut = batch.size - max(1, batch.size // 5)
        if batch.size < 2:
            fitted.append(batch)
            continue
        fitted.append(batch.part(0, cut))
        held.append(batch.part(cut, batch.size))
    if not held:
        raise InputError(
            "netadapt: calibration: a single sample cannot be both fitted to and held out; pass at least two samples."
        )
    return Calibration(fitted, held, digest)


def first_samples(batches: Sequence[Batch], most: int) -> list[Batch]:
    """The first batches, the last of them cut, that hold `most` samples together."""
    taken: list[Batch] = []
    left = most
    for batch in batches:
        if left <= 0:
            break
        size = batch.size
        taken.append(batch.part(0, left) if size > left else batch)
        left -= max(size, 1)
    return taken


def _digest(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        leaves, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs), batch.labels))
        digest.update(str(spec).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                plain = leaf.detach().cpu().contiguous()
                digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
            else:
                digest.update(repr(leaf).encode() if isinstance(leaf, bool | int | float | str) else b"?")
    return digest.hexdigest()
