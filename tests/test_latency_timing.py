"""Timing: medians, their intervals, and runs that do not count."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.latency.timing import Clock, Reference, pace, timing


class Machine:
    """A clock that only work moves; `slow` and `away` give, for a run, its slowness and the ms off the core."""

    def __init__(self, slow=lambda run: 1.0, away=lambda run: 0.0) -> None:
        self.wall = self.busy = 0.0
        self.runs = 0
        self.slow, self.away = slow, away
        self.clock = Clock(lambda: self.wall, lambda: self.busy)

    def work(self, ms: float):
        def run() -> None:
            took = ms * self.slow(self.runs) / 1e3
            self.busy += took
            self.wall += took + self.away(self.runs) / 1e3
            self.runs += 1

        return run


def test_median_and_interval() -> None:
    found = timing(np.arange(1, 102))
    assert found.ms == 51 and found.low < 51 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(101) / 2, abs=2)
    assert timing([7.0]).low == timing([7.0]).high == 7.0
    with pytest.raises(ValueError, match="no runs"):
        timing([])


def test_interval_holds_the_median_in_nineteen_of_twenty() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = timing(rng.lognormal(size=21))
        held += found.low <= 1.0 <= found.high
    assert 0.92 < held / 400 <= 1.0


def test_time_off_the_core_is_not_counted() -> None:
    machine = Machine(away=lambda run: 30.0 if run % 2 else 0.0)
    assert pace(machine.work(2.0), clock=machine.clock).timing().ms == pytest.approx(2.0)
    assert pace(machine.work(2.0), clock=machine.clock, one_thread=False).timing().high > 30


def test_parts_of_runs_count_only_where_the_core_was_kept() -> None:
    machine = Machine(away=lambda run: 5.0 if run % 3 else 0.0)
    kept = pace(machine.work(2.0), clock=machine.clock).uninterrupted()
    assert kept.counts.tolist() == [run % 3 == 0 for run in range(3, 18)]
    never = Machine(away=lambda run: 1.0 + run % 5)
    few = pace(never.work(2.0), clock=never.clock).uninterrupted()
    assert few.counts.all()
    parts = np.array([1.0] * 6 + [3.0] * 9)  # in most runs the interruption fell into this part
    assert few.relative(parts).ms == 3.0 and few.part(parts).ms == 1.0


def test_slow_spells_do_not_count_and_drift_is_divided_out() -> None:
    machine = Machine(slow=lambda run: 1.4 if 20 < run % 60 < 50 else 1.03 if run % 60 >= 50 else 1.0)
    reference = Reference(machine.work(5.0))
    found = pace(machine.work(2.0), reference, repeats=20, clock=machine.clock)
    assert found.counts.sum() >= 10 and not found.counts.all()
    assert found.timing().ms == pytest.approx(2.0, rel=0.01)
    assert found.timing().high < 2.05


def test_without_a_quiet_moment_the_quickest_runs_count() -> None:
    machine = Machine(slow=lambda run: 1.0 if run < 5 else 1.5 + 0.01 * (run % 7))
    reference = Reference(machine.work(5.0), times_ms=[5.0] * 40)
    found = pace(machine.work(2.0), reference, repeats=10, clock=machine.clock)
    assert found.counts.sum() == 5 and len(found.times_ms) == 30
    assert found.timing().ms == pytest.approx(2.0, rel=0.02)


def test_repeats_and_warm_up() -> None:
    machine = Machine(slow=lambda run: 10.0 if run < 3 else 1.0)
    found = pace(machine.work(1.0), repeats=8, clock=machine.clock)
    assert len(found.times_ms) == 8 and machine.runs == 3 + 8
    assert found.timing().high == pytest.approx(1.0)
