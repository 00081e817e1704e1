"""Live progress of a search: the round, its candidates, the resource on its way to the budget, the time left.

Bars on a terminal. Where the output goes elsewhere, a line for each round, and one every 30 s in between.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from fxprune.io.printed_text import printed, terminal
from fxprune.journal.records import Candidate, Round
from fxprune.problem.search_problem import Problem

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)


class Progress(Protocol):
    """What a search tells of itself while it runs."""

    def told(self, text: str) -> None:
        """A line before it starts."""

    def started(self, problem: Problem) -> None: ...

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None: ...

    def candidate_done(self, candidate: Candidate) -> None: ...

    def round_done(self, record: Round) -> None: ...

    def finished(self) -> None: ...


class Quiet:
    """Shows nothing."""

    def told(self, text: str) -> None:
        pass

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

    def __init__(self, console: Console | None = None):
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),  # a group may be called [0]
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._begun = time.perf_counter()
        self._rounds = 0

    def told(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, problem: Problem) -> None:
        self._problem, self._begun = problem, time.perf_counter()
        self._way = self._bars.add_task("budget", total=1.0, note="")
        self._candidates = self._bars.add_task("round 1", total=None, note="")
        self._bars.start()

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None:
        self._bars.reset(self._candidates, total=max(1, candidates), description=f"round {number}", note="")

    def candidate_done(self, candidate: Candidate) -> None:
        from rich.markup import escape

        note = f"{candidate.group}: " + ("failed" if candidate.error else f"{candidate.score:.4g}")
        self._bars.update(self._candidates, advance=1, note=escape(printed(note)), refresh=True)

    def round_done(self, record: Round) -> None:
        self._rounds += 1
        share, note = way(self._problem, record)
        note += time_left(self._problem, record, (time.perf_counter() - self._begun) / self._rounds)
        self._bars.update(self._way, completed=share, note=note)

    def finished(self) -> None:
        self._bars.stop()


class Lines:
    """Shows nothing, and logs each round in one line: a search whose output goes to a file can be followed there.

    Where nothing was logged for `every` seconds, a line says how far the round is, also inside a candidate.
    """

    def __init__(self, every: float = 30.0):
        self._every, self._ended, self._last = every, threading.Event(), time.perf_counter()
        self._round, self._candidates, self._done, self._since = 1, 0, 0, self._last

    def told(self, text: str) -> None:
        log.info("%s", text)

    def started(self, problem: Problem) -> None:
        self._problem, self._begun, self._rounds = problem, time.perf_counter(), 0
        self._last = self._since = self._begun
        threading.Thread(target=self._watch, name="fxprune progress", daemon=True).start()

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None:
        self._round, self._candidates, self._done, self._since = number, candidates, 0, time.perf_counter()

    def candidate_done(self, candidate: Candidate) -> None:
        self._done, self._since = self._done + 1, time.perf_counter()

    def finished(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._every - time.perf_counter())):
            now = time.perf_counter()
            if now - self._last >= self._every:
                self._last = now
                log.info(
                    "round %d: %d of %d candidates done, the next for %.0f s; %.0f s in all",
                    self._round, self._done, self._candidates, now - self._since, now - self._begun,
                )  # fmt: skip

    def round_done(self, record: Round) -> None:
        self._rounds, self._last = self._rounds + 1, time.perf_counter()
        self._round, self._candidates, self._done, self._since = record.round + 1, 0, 0, self._last
        left = time_left(self._problem, record, (time.perf_counter() - self._begun) / self._rounds)
        log.info(
            "round %d: %s, score %.6g, %s%s",
            record.round, record.chosen_group, record.score, way(self._problem, record)[1], left,
        )  # fmt: skip


def way(problem: Problem, record: Round) -> tuple[float, str]:
    """How much of the way to the budgets is gone after a round, 0 to 1, and in words: of the resource that has most of
    it left."""
    start, limits = problem.start, problem.limits
    gone = {
        name: (start[name] - record.achieved[name]) / (start[name] - limit)
        for name, limit in limits.items()
        if limit < start[name]
    }
    name = min(gone, key=lambda key: gone[key])
    words = (
        f"{name} at {record.achieved[name] / start[name]:.1%} of the start (budget {limits[name] / start[name]:.1%})"
    )
    return min(1.0, max(0.0, gone[name])), words


def time_left(problem: Problem, record: Round, seconds: float) -> str:
    """The time that rounds of `seconds` each would still take if they hit their targets."""
    schedule, start, limits = problem.config.schedule, problem.start, problem.limits
    most = 0
    for name, limit in limits.items():
        achieved, left = record.achieved[name], 0
        while achieved > limit and left < 1000:
            left += 1
            achieved = schedule.target(record.round + left, start=start[name], achieved=achieved, budget=limit)
        most = max(most, left)
    seconds *= most
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def make_progress(progress: bool) -> Progress:
    """Bars on a terminal, a line of log for each round where the output is not one; nothing if `progress` is False."""
    if not progress:
        return Quiet()

    console = terminal(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
