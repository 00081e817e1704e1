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


def test_interrupted_parts_do_not_count() -> None:
    """Two of three runs lose the core for 4 ms, in their second part; the first part is spared."""
    machine = Machine(away=lambda run: 4.0 if run % 3 else 0.0)
    found = pace(machine.work(3.0), repeats=30, clock=machine.clock)
    first, second = np.full(30, 1.0), 2.0 + found.away_ms
    assert found.relative(second).ms == pytest.approx(6.0)  # what would be believed without a look
    part, spared = found.part(second)
    assert spared and [part.ms, part.high] == pytest.approx([2.0, 2.0])
    assert found.part(first)[0].repeats == 30


def test_where_a_part_is_hardly_ever_spared_its_quickest_third_counts() -> None:
    machine = Machine(away=lambda run: 6.0)
    found = pace(machine.work(3.0), repeats=15, clock=machine.clock)
    part = np.array([2.0] * 3 + [4.0 + 0.1 * run for run in range(12)])
    quickest, spared = found.part(part)
    assert not spared and quickest.repeats == 5 and quickest.ms == 2.0


def test_a_slow_part_of_an_uninterrupted_run_counts() -> None:
    machine = Machine()
    found = pace(machine.work(3.0), repeats=15, clock=machine.clock)
    part, spared = found.part(np.array([2.0] * 4 + [3.0] * 11))
    assert spared and part.ms == 3.0


def test_slow_spells_are_divided_out() -> None:
    """The machine is 60 % slower for half of the time, as long as several runs each; the plain median would follow."""
    machine = Machine(slow=lambda run: 1.6 if run % 14 >= 6 else 1.0)
    reference = Reference(machine.work(5.0))
    found = pace(machine.work(2.0), reference, repeats=20, clock=machine.clock)
    assert np.median(found.times_ms) > 2.5
    assert found.timing().ms == pytest.approx(2.0, rel=0.01)


def test_repeats_and_warm_up() -> None:
    machine = Machine(slow=lambda run: 10.0 if run < 3 else 1.0)
    found = pace(machine.work(1.0), repeats=8, clock=machine.clock)
    assert len(found.times_ms) == 8 and machine.runs == 3 + 8
    assert found.timing().high == pytest.approx(1.0)
