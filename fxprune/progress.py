"""Live progress of a search: the round, its candidates, the resource on its way to the budget, the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fxprune.records import Candidate, Round

if TYPE_CHECKING:
    from fxprune.search import Problem


class Progress(Protocol):
    """What a search tells of itself while it runs."""

    def started(self, problem: Problem) -> None: ...

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None: ...

    def candidate_done(self, candidate: Candidate) -> None: ...

    def round_done(self, record: Round) -> None: ...

    def finished(self) -> None: ...


class Quiet:
    """Shows nothing."""

    def started(self, problem: Problem) -> None:
        pass

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None:
        pass

    def candidate_done(self, candidate: Candidate) -> None:
        pass

    def round_done(self, record: Round) -> None:
        pass

    def finished(self) -> None:
        pass


class Bars:
    """Two lines of a terminal: the way from the start to the budget, and the candidates of this round.

    The way is that of the resource that has most of it left. Time left is estimated from the rounds that hit their
    targets would still take, at the mean time of those so far.
    """

    def __init__(self, console: Any = None):
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._begun = time.perf_counter()
        self._rounds = 0

    def started(self, problem: Problem) -> None:
        self._problem, self._begun = problem, time.perf_counter()
        self._way = self._bars.add_task("budget", total=1.0, note="")
        self._candidates = self._bars.add_task("round 1", total=None, note="")
        self._bars.start()

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None:
        self._bars.reset(self._candidates, total=max(1, candidates), description=f"round {number}", note="")

    def candidate_done(self, candidate: Candidate) -> None:
        note = f"{candidate.group}: " + ("failed" if candidate.error else f"{candidate.score:.4g}")
        self._bars.update(self._candidates, advance=1, note=note, refresh=True)

    def round_done(self, record: Round) -> None:
        self._rounds += 1
        start, limits = self._problem.start, self._problem.limits
        way = {
            name: (start[name] - record.achieved[name]) / (start[name] - limit)
            for name, limit in limits.items()
            if limit < start[name]
        }
        name = min(way, key=lambda key: way[key])
        note = f"{name} {record.achieved[name] / start[name]:.1%} of {limits[name] / start[name]:.1%}"
        note += self._left(record, name)
        self._bars.update(self._way, completed=min(1.0, max(0.0, way[name])), note=note)

    def finished(self) -> None:
        self._bars.stop()

    def _left(self, record: Round, name: str) -> str:
        schedule, start, limit = self._problem.config.schedule, self._problem.start[name], self._problem.limits[name]
        achieved, number, left = record.achieved[name], record.round, 0
        while achieved > limit and left < 1000:
            number, left = number + 1, left + 1
            achieved = schedule.target(number, start=start, achieved=achieved, budget=limit)
        seconds = left * (time.perf_counter() - self._begun) / self._rounds
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def make_progress(progress: bool) -> Progress:
    """Bars on a terminal; nothing where the output is not one, or `progress` is False."""
    if not progress:
        return Quiet()
    from rich.console import Console

    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Quiet()
