"""Live progress of a search: what is done now, the round, its candidates, the way to the budget, the time left.

Bars on a terminal. Where the output goes elsewhere, a line for each round, and one every 30 s in between, whatever
is done then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fxprune.io.printed_text import printed, terminal
from fxprune.journal.records import Candidate, Round
from fxprune.problem.search_problem import Problem

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)


class Progress(Protocol):
    """What a search reports while it runs."""

    def begun(self) -> None:
        """First of all, before anything is known of the network."""

    def stage(self, text: str, far: str = "") -> None:
        """What is done from now on, outside of candidates ("evaluating the unpruned network"), and how far it is."""

    def message(self, text: str) -> None:
        """A line before it starts."""

    def started(self, problem: Problem) -> None: ...

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None: ...

    def candidate_done(self, candidate: Candidate) -> None: ...

    def round_done(self, record: Round) -> None: ...

    def finished(self) -> None:
        """The end, also of a search that failed."""


class Quiet:
    """Shows nothing."""

    def begun(self) -> None:
        pass

    def stage(self, text: str, far: str = "") -> None:
        pass

    def message(self, text: str) -> None:
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


@contextmanager
def reporting(progress: Progress) -> Iterator[Progress]:
    """Progress from the first step of a search to its end, however that comes."""
    progress.begun()
    try:
        yield progress
    finally:
        progress.finished()


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

    def begun(self) -> None:
        """Nothing yet: a latency table that is built first has a bar of its own."""

    def stage(self, text: str, far: str = "") -> None:
        if self._bars.tasks:
            self._bars.reset(self._candidates, total=None, description=text, note=far)

    def message(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, problem: Problem) -> None:
        self._problem, self._begun = problem, time.perf_counter()
        self._way = self._bars.add_task("budget", total=1.0, note="")
        self._candidates = self._bars.add_task("", total=None, note="")
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

    Where nothing was logged for `every` seconds, a line says what is done, how far that is, and for how long.
    """

    def __init__(self, every: float = 30.0):
        self._every, self._ended, self._rounds = every, threading.Event(), 0
        self._begun = self._last = self._since = time.perf_counter()
        self._doing, self._round, self._candidates, self._done = "starting", 1, 0, 0

    def begun(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="fxprune progress", daemon=True)
        self._thread.start()

    def stage(self, text: str, far: str = "") -> None:
        known = self._doing.partition(": ")[0]
        if not far or known != text:
            self._since = time.perf_counter()
        self._doing = f"{text}: {far}" if far else text

    def message(self, text: str) -> None:
        log.info("%s", text)

    def started(self, problem: Problem) -> None:
        self._problem, self._searching = problem, time.perf_counter()

    def round_started(self, number: int, targets: Mapping[str, float], candidates: int) -> None:
        self._round, self._candidates, self._done = number, candidates, 0
        self._at_candidate()

    def candidate_done(self, candidate: Candidate) -> None:
        self._done += 1
        self._at_candidate()

    def _at_candidate(self) -> None:
        self.stage(f"round {self._round}: {self._done} of {self._candidates} candidates done, the next")

    def finished(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._every - time.perf_counter())):
            now = time.perf_counter()
            if now - self._last >= self._every:
                self._last = now
                log.info("%s, for %.0f s; %.0f s in all", self._doing, now - self._since, now - self._begun)

    def round_done(self, record: Round) -> None:
        self._rounds, self._last = self._rounds + 1, time.perf_counter()
        left = time_left(self._problem, record, (self._last - self._searching) / self._rounds)
        self.stage(f"round {record.round + 1}: ranking units and proposing widths")
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
