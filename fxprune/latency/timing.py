"""How a run is timed on a machine that others use too: warm-up, turns with a reference, median, interval.

Two kinds of noise were met on shared x86 machines. The thread is put off the core for milliseconds: work on one thread
is therefore timed by that thread's own clock. And the whole core is 20 to 60 % slower for seconds (neighbours on the
same caches). That shows in a *reference*, a fixed workload that runs before and after each timed run: what both suffer
is divided out, and the median of the quotients counts. To keep only the runs with a quick reference was tried, and is
worse: on a machine that is never quiet they are few, and the quotient of a chance minimum is no better than another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

QUIET = 1.07
"""A reference up to this multiple of its floor is undisturbed."""

_INTERRUPTION_MS = 1.0  # schedulers give the core away for one to four milliseconds

_REMEMBERED = 500  # runs of a reference: a machine that has grown slower for good is not waited for


@dataclass(frozen=True)
class Timing:
    """Median of runs in milliseconds, with the 95 % confidence interval of that median."""

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
    """A fixed workload, timed to know how fast the machine is at the moment."""

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
    """The raw runs: time of each, what the reference took around each, and takes in quiet.

    Without a reference `around_ms` is 1 throughout, and so is `quiet_ms`. away_ms: how long the thread was off the core
    during each run, which `times_ms` leaves out.
    """

    times_ms: np.ndarray
    around_ms: np.ndarray
    quiet_ms: float
    away_ms: np.ndarray | float = 0.0

    def timing(self) -> Timing:
        """At the speed of the quiet machine."""
        return self.relative(self.times_ms).scaled(self.quiet_ms)

    def relative(self, times_ms: np.ndarray) -> Timing:
        """The timing of times taken in these runs, in units of the reference."""
        return timing(times_ms / self.around_ms)

    def part(self, times_ms: np.ndarray) -> tuple[Timing, bool]:
        """As `relative`, for a part of each run by the world's clock; and whether enough runs were undisturbed.

        An interruption lasts about a millisecond or more and falls into one part or another. A part that took longer
        than its quickest runs by half of that, in a run that lost as much, holds one and does not count. Where hardly
        any run was spared, as of a part that is longer than the scheduler's turns, the quickest third counts.
        """
        ratios = times_ms / self.around_ms
        longer_ms = (ratios - np.percentile(ratios, 10)) * self.around_ms
        away_ms = np.broadcast_to(self.away_ms, times_ms.shape)
        kept = (longer_ms <= np.minimum(away_ms, _INTERRUPTION_MS) / 2) | (away_ms <= 0.03 * self.times_ms)
        if kept.sum() < len(ratios) / 4:
            return timing(np.sort(ratios)[: -(-len(ratios) // 3)]), False
        return timing(ratios[kept]), True


def pace(
    run: Callable[[], object],
    reference: Reference | None = None,
    *,
    repeats: int = 15,
    warmup: int = 3,
    one_thread: bool = True,
    clock: Clock = CLOCK,
) -> Pace:
    """Run `repeats` times, in turns with the reference."""

    def reference_ms() -> float:
        if reference is None:
            return 1.0
        reference.times_ms.append(clock.time_ms(reference.run, one_thread)[0])
        return reference.times_ms[-1]

    for _ in range(warmup):
        run()
    taken, away, beside = [], [], [reference_ms()]
    for _ in range(repeats):
        ms, away_ms = clock.time_ms(run, one_thread)
        taken.append(ms)
        away.append(away_ms)
        beside.append(reference_ms())
    around = (np.array(beside[:-1]) + np.array(beside[1:])) / 2
    return Pace(np.array(taken), around, 1.0 if reference is None else reference.quiet_ms, np.array(away))


def warm_up(reference: Reference, *, seconds: float = 1.0, least: int = 20, one_thread: bool = True) -> None:
    """Run a reference until its floor is known."""
    end = time.perf_counter() + seconds
    for _ in range(3):
        reference.run()
    while len(reference.times_ms) < least or time.perf_counter() < end:
        reference.times_ms.append(CLOCK.time_ms(reference.run, one_thread)[0])
