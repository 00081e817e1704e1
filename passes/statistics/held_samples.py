"""Which samples `observe` holds out of its sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from passes.statistics.batches import Batch

_SHARE = 5  # every fifth sample is held out


def hold_out(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same samples in the same order, in batches that `observe` sums whole or holds out whole.

    The last fifth of each batch is held out; of small batches a fifth of all samples so far, but never the first one.
    What is marked already stays so. `observe` does this itself with all that it is given: do it before where the
    batches are observed in several parts whose statistics are to be merged, so that the sums are those of the whole.
    """
    samples = held = 0
    for batch in batches:
        for part in _parts(batch, samples, held) if batch.held is None else [batch]:
            size = max(part.size, 1)
            samples, held = samples + size, held + size * bool(part.held)
            yield part


def _parts(batch: Batch, samples: int, held: int) -> Iterator[Batch]:
    """samples, held: how many there were before, and how many of these were held out."""
    size = max(batch.size, 1)
    of_small = min(-(-(samples + size) // _SHARE) - held, size - (samples == 0))
    out = size // _SHARE if size >= _SHARE else of_small
    if out <= 0 or out == size:
        yield replace(batch, held=out > 0)
    else:
        yield replace(batch.part(0, size - out), held=False)
        yield replace(batch.part(size - out, size), held=True)
