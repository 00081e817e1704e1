"""What a search needs of a place to remember, and the simplest such place: this process's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from fxprune.criteria.curves import Curve
from fxprune.journal.records import Candidate, Round
from fxprune.problem.search_problem import Problem
from passes import Statistics


class Journal(Protocol):
    """Remembers finished candidates and rounds. What it returns is intact; what is damaged or missing is None.

    `keeps_untrained`: it wants the weights of every round, also where nothing is trained and they follow from the plan.
    """

    keeps_untrained: bool

    def resumed(self, problem: Problem) -> Problem:
        """The problem as it was when the run began."""

    def baseline(self) -> float | None:
        """The score of the unpruned network, if it is known."""

    def save_baseline(self, score: float) -> None: ...

    def observed(self) -> tuple[Statistics, dict[str, Curve]] | None:
        """What the data said of the unpruned network, if that is known."""

    def save_observed(self, statistics: Statistics, curves: Mapping[str, Curve]) -> None: ...

    def recorded_curves(self) -> dict[str, Curve] | None:
        """What each width of each group of the unpruned network costs, by the data, if that is known."""

    def candidate(self, round: int, proposed: Candidate) -> Candidate | None:
        """The finished candidate that was this proposal, if there is one."""

    def save_candidate(self, round: int, candidate: Candidate, weights: bytes | None) -> None:
        """Remember a finished candidate; its weights too, if they are given."""

    def candidate_weights(self, round: int, index: int) -> bytes | None: ...

    def drop_candidate_weights(self, round: int, index: int) -> None:
        """Delete the weights of a candidate that was not chosen."""

    def round(self, round: int) -> Round | None:
        """A finished round that continues the one before it."""

    def save_round(self, record: Round, weights: bytes | None) -> None:
        """Remember a finished round with the weights of the chosen network; its candidates' weights may go."""

    def weights(self, round: int) -> bytes | None:
        """The weights of the network that a round chose; None where they follow from its plan and the unpruned one."""

    def keep_weights(self, rounds: Collection[int]) -> None:
        """Delete the weights of all other rounds; a journal in memory may keep them."""

    def recorded_result(self) -> dict[str, Any] | None:
        """How the search ended, if it did."""

    def save_result(self, result: Mapping[str, object]) -> None:
        """Remember how the search ended."""

    def close(self) -> None: ...


class Memory:
    """Keeps the chosen weights of each round in memory, and nothing for later processes."""

    keeps_untrained = False

    def __init__(self) -> None:
        self._candidates: dict[tuple[int, int], bytes] = {}
        self._rounds: dict[int, bytes | None] = {}
        self._curves: dict[str, Curve] | None = None

    def resumed(self, problem: Problem) -> Problem:
        return problem

    def baseline(self) -> float | None:
        return None

    def save_baseline(self, score: float) -> None:
        pass

    def observed(self) -> tuple[Statistics, dict[str, Curve]] | None:
        return None

    def save_observed(self, statistics: Statistics, curves: Mapping[str, Curve]) -> None:
        self._curves = dict(curves)

    def recorded_curves(self) -> dict[str, Curve] | None:
        return self._curves

    def candidate(self, round: int, proposed: Candidate) -> Candidate | None:
        return None

    def save_candidate(self, round: int, candidate: Candidate, weights: bytes | None) -> None:
        if weights is not None:
            self._candidates[round, candidate.index] = weights

    def candidate_weights(self, round: int, index: int) -> bytes | None:
        return self._candidates.get((round, index))

    def drop_candidate_weights(self, round: int, index: int) -> None:
        self._candidates.pop((round, index), None)

    def round(self, round: int) -> Round | None:
        return None

    def save_round(self, record: Round, weights: bytes | None) -> None:
        self._rounds[record.round] = weights
        self._candidates.clear()

    def weights(self, round: int) -> bytes | None:
        return self._rounds[round]

    def keep_weights(self, rounds: Collection[int]) -> None:
        pass

    def recorded_result(self) -> dict[str, Any] | None:
        return None

    def save_result(self, result: Mapping[str, object]) -> None:
        pass

    def close(self) -> None:
        pass
