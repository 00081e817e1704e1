"""How a run is timed on a machine that others use too: warm-up, interleaved repeats, quiet runs only, median, interval.

Two kinds of noise were met on shared x86 machines. The thread is put off the core for milliseconds: work on one thread
is therefore timed by that thread's own clock. And the whole core is 20 to 40 % slower for a second or so (a neighbour
on the same caches). That shows in a *reference*, a fixed workload that runs before and after each timed run: a run
counts only where its two references are near the reference's floor, and what is left of the drift is divided out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

QUIET = 1.07
"""A reference up to this multiple of its floor is undisturbed."""


_REMEMBERED = 500  # runs of a reference: a machine that has grown slower for good is not waited for


@dataclass(frozen=True)
class Timing:
    """Median of the quiet runs in milliseconds, with the 95 % confidence interval of that median."""

    ms: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.ms:.3f} ms ({self.low:.3f} to {self.high:.3f}, {self.repeats} runs)"

    @property
    def noise(self) -> float:
        """Half the interval as a share of the median."""
        return (self.high - self.low) / (2 * self.ms) if self.ms > 0 else 0.0

    def scaled(self, factor: float) -> Timing:
        return Timing(self.ms * factor, self.low * factor, self.high * factor, self.repeats)


def timing(times_ms: Sequence[float] | np.ndarray) -> Timing:
    """Median and its interval from order statistics (no distribution assumed).

    The interval's ranks are those of a binomial with p = 1/2, by its normal approximation.

    >>> timing([5, 1, 2, 3, 4, 100, 3, 3, 3, 3, 3])
    Timing(ms=3.0, low=2.0, high=5.0, repeats=11)
    """
    ordered = np.sort(np.asarray(times_ms, dtype=float))
    count = len(ordered)
    if not count:
        raise ValueError("timing: no runs to take the median of")
    reach = 1.96 * np.sqrt(count) / 2
    low = max(0, round(count / 2 - reach) - 1)
    high = min(count - 1, round(count / 2 + reach))
    return Timing(float(np.median(ordered)), float(ordered[low]), float(ordered[high]), count)


@dataclass(frozen=True)
class Clock:
    """Where time comes from, in seconds; tests put their own here. `busy` counts only while the calling thread runs."""

    wall: Callable[[], float] = time.perf_counter
    busy: Callable[[], float] = time.thread_time

    def time_ms(self, run: Callable[[], object], one_thread: bool) -> tuple[float, float]:
        """How long `run` takes, and how much of the world's time passed beside that.

        Work on one thread is timed by that thread's clock, other work by the world's.
        """
        busy, wall = self.busy(), self.wall()
        run()
        wall, busy = (self.wall() - wall) * 1e3, (self.busy() - busy) * 1e3
        return (busy, max(wall - busy, 0.0)) if one_thread else (wall, 0.0)


CLOCK = Clock()


@dataclass
class Reference:
    """A fixed workload that tells how fast the machine is at the moment."""

    run: Callable[[], object]
    times_ms: list[float] = field(default_factory=list)

    @property
    def floor_ms(self) -> float:
        """The 5th percentile of the last runs: a time that it reaches whenever the machine is left alone."""
        return float(np.percentile(self.times_ms[-_REMEMBERED:], 5))

    @property
    def quiet_ms(self) -> float:
        """The median of the undisturbed runs."""
        times = np.asarray(self.times_ms[-_REMEMBERED:])
        return float(np.median(times[times <= QUIET * self.floor_ms]))


@dataclass(frozen=True)
class Pace:
    """The raw runs: time of each, which of them count, what the reference took around each, and takes in quiet.

    Without a reference `around_ms` is 1 throughout, and so is `quiet_ms`. away_ms: how long the thread was off the core
    during each run, which `times_ms` leaves out.
    """

    times_ms: np.ndarray
    counts: np.ndarray
    around_ms: np.ndarray
    quiet_ms: float
    away_ms: np.ndarray | float = 0.0

    def uninterrupted(self) -> Pace:
        """For parts timed by the world's clock: only runs that kept the core count; all of them, if few did."""
        away = np.broadcast_to(self.away_ms, self.times_ms.shape)
        kept = self.counts & (away <= 0.03 * self.times_ms)
        return replace(self, counts=kept) if kept.sum() >= -(-int(self.counts.sum()) // 3) else self

    def timing(self) -> Timing:
        return self.corrected(self.times_ms)

    def corrected(self, times_ms: np.ndarray) -> Timing:
        """The timing of times taken in these runs: of those that count, at the speed of the quiet machine."""
        return self.relative(times_ms).scaled(self.quiet_ms)

    def part(self, times_ms: np.ndarray) -> Timing:
        """As `relative`, for a part of each run; where most runs were interrupted, of the quickest third of that part.

        An interruption falls into one part or another, and the longer a part, the more often into that one.
        """
        away = np.broadcast_to(self.away_ms, self.times_ms.shape)[self.counts]
        ratios = np.sort((times_ms / self.around_ms)[self.counts])
        if np.mean(away > 0.03 * self.times_ms[self.counts]) > 0.5:
            ratios = ratios[: max(1, len(ratios) // 3)]
        return timing(ratios)

    def relative(self, times_ms: np.ndarray) -> Timing:
        """As `corrected`, in units of the reference."""
        return timing((times_ms / self.around_ms)[self.counts])


def pace(
    run: Callable[[], object],
    reference: Reference | None = None,
    *,
    repeats: int = 15,
    warmup: int = 3,
    patience: int = 3,
    one_thread: bool = True,
    clock: Clock = CLOCK,
) -> Pace:
    """Run until `repeats` runs were undisturbed, at most `patience` times as many in all.

    Where fewer than half of `repeats` were, that many with the quickest surroundings count; the interval tells more.
    """

    def reference_ms() -> float:
        if reference is None:
            return 1.0
        reference.times_ms.append(clock.time_ms(reference.run, one_thread)[0])
        return reference.times_ms[-1]

    for _ in range(warmup):
        run()
    times: list[tuple[float, float]] = []
    around: list[float] = []
    before = reference_ms()
    while len(times) < repeats * patience:
        times.append(clock.time_ms(run, one_thread))
        after = reference_ms()
        around.append((before + after) / 2)
        before = after
        if len(times) >= repeats and _undisturbed(reference, around).sum() >= repeats:
            break
    counts = _undisturbed(reference, around)
    enough = max(1, repeats // 2)
    if counts.sum() < enough:
        counts = np.zeros(len(times), dtype=bool)
        counts[np.argsort(around, kind="stable")[:enough]] = True
    taken, away = np.array(times).T
    return Pace(taken, counts, np.array(around), 1.0 if reference is None else reference.quiet_ms, away)


def warm_up(reference: Reference, *, seconds: float = 1.0, least: int = 20, one_thread: bool = True) -> None:
    """Run a reference until its floor is known."""
    end = time.perf_counter() + seconds
    for _ in range(3):
        reference.run()
    while len(reference.times_ms) < least or time.perf_counter() < end:
        reference.times_ms.append(CLOCK.time_ms(reference.run, one_thread)[0])


def _undisturbed(reference: Reference | None, around: Sequence[float]) -> np.ndarray:
    limit = np.inf if reference is None else QUIET * reference.floor_ms
    return np.asarray(around) <= limit
