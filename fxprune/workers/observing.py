"""Calibration data observed in shards: one after the other here, or beside each other by workers that can."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from fxprune.problem.calibration import count_samples
from fxprune.training.candidate import seeded
from fxprune.workers.coupled_network import CoupledNetwork
from passes import Statistics, observe
from passes.statistics import Batch, hold_out

Told = Callable[[int], None]
"""Is called with the number of samples that have been observed so far."""


@dataclass(frozen=True)
class Shard:
    """A part of the calibration data, observed apart from the others. gradients: as `observe` takes them."""

    batches: Sequence[Batch]
    seed: int
    gradients: str | None = None

    @property
    def samples(self) -> int:
        return count_samples(self.batches)

    def observed(self, dense: CoupledNetwork, progress: Told | None = None) -> Statistics:
        """What these data say of the network; nothing of the network or the data themselves."""
        with seeded(self.seed):
            found = observe(
                dense.network, dense.coupling, self.batches, seed=self.seed, gradients=self.gradients,
                progress=progress,
            )  # fmt: skip
        return replace(found, network=None, coupling=None, held_inputs=())


def shards_of(batches: Sequence[Batch], count: int, seed: int, gradients: str | None = None) -> list[Shard]:
    """Batches in `count` shards of about as many samples each, in their order; fewer where there are fewer samples.

    A batch that goes to two shards is cut. Which samples are held out is decided here, for all shards together. Each
    shard draws from a seed of its own.
    """
    batches = list(hold_out(batches))
    total = count_samples(batches)
    count = min(count, total)
    ends = [total * (number + 1) // count for number in range(count)]
    parts: list[list[Batch]] = [[] for _ in ends]
    begin = 0
    for batch in batches:
        size, at = max(batch.size, 1), 0
        while at < size:
            number = next(number for number, end in enumerate(ends) if begin + at < end)
            stop = min(size, ends[number] - begin)
            parts[number].append(batch if stop - at == size else batch.part(at, stop))
            at = stop
        begin += size
    return [Shard(part, seed + number, gradients) for number, part in enumerate(parts)]


@runtime_checkable
class Observers(Protocol):
    """Workers that also observe."""

    def observe(self, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told) -> Iterator[Statistics]:
        """Yield what each shard gives, in their order."""


def observed_by(
    workers: object, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told
) -> Iterator[Statistics]:
    """What each shard gives, in their order: by workers that observe, or one after the other in this process."""
    if isinstance(workers, Observers):
        yield from workers.observe(dense, shards, progress)
        return
    before = 0
    for shard in shards:
        yield shard.observed(dense, lambda done, before=before: progress(before + done))  # type: ignore[misc]
        before += shard.samples


def observe_packed(dense: bytes, shard: bytes) -> bytes:
    """What a pickled shard gives in the process that it came to, pickled."""
    return pickle.dumps(pickle.loads(shard).observed(pickle.loads(dense)))
