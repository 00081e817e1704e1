"""The candidates of a round: compared without training where there are calibration data, trained, and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.errors import SearchError
from fxprune.journal.protocol import Journal
from fxprune.journal.records import Candidate
from fxprune.problem.search_problem import Problem
from fxprune.search.choosing import choose
from fxprune.search.position import Position, plan_of
from fxprune.search.progress import Progress
from fxprune.search.proposals import Proposal
from fxprune.training.candidate import seed_of
from fxprune.training.repaired import Repaired
from fxprune.workers.protocol import Outcome, Task, Workers

log = logging.getLogger(__name__)


def as_candidates(
    problem: Problem, number: int, proposals: Sequence[Proposal], lost: Mapping[str, np.ndarray], first: int = 0
) -> tuple[Candidate, ...]:
    """The records of a round's proposals; `trained` marks those that are to be trained. first: the index of the first
    one."""
    candidates = [
        Candidate(
            index,
            proposal.name,
            proposal.widths,
            proposal.resources,
            proposal.meets,
            float(sum(lost[name][width] for name, width in proposal.widths.items())),
            seed_of(problem.seed, number, proposal.name),
            problem.config.netadapt_max_iter if problem.trains else 0,
        )
        for index, proposal in enumerate(proposals, first)
    ]
    feasible = [candidate for candidate in candidates if candidate.feasible]
    feasible.sort(key=lambda candidate: candidate.lost)
    selected = {candidate.index for candidate in feasible[: problem.config.candidates_per_round]}
    return tuple(replace(candidate, trained=candidate.index in selected) for candidate in candidates)


@dataclass(frozen=True)
class Kept:
    """The chosen network of a round as it is kept: weights, score, and what repair did to it."""

    weights: bytes
    score: float
    repaired: Repaired | None


@dataclass(frozen=True)
class CandidateRuns:
    """The candidates of one round, run: from where, on which workers, and where the results are kept.

    scores: how much each unit of each group is needed.
    """

    problem: Problem
    position: Position
    number: int
    scores: Mapping[str, np.ndarray]
    workers: Workers
    journal: Journal
    progress: Progress

    def run_all(self, candidates: Sequence[Candidate], screens: bool = False) -> tuple[Candidate, ...]:
        """Those that are marked `trained` are run, in parallel where there are workers, and journalled. Only the
        weights of the best so far are kept.

        screens: they are repaired and compared by their outputs alone.
        """
        done = {candidate.index: candidate for candidate in candidates}
        waiting = []
        for candidate in candidates:
            known = self.journal.candidate(self.number, candidate) if candidate.trained else None
            if known is not None and screens and known.screened is not None:
                known = replace(known, score=known.screened, steps=0, trained=True)
            elif known is not None and (known.score is None and known.error is None or known.steps != candidate.steps):
                known = None  # it was only screened
            if known is not None:
                done[candidate.index] = known
                self.progress.candidate_done(known)
            elif candidate.trained:
                waiting.append(candidate)
        best = self._best([candidate for candidate in done.values() if candidate.score is not None])
        for outcome in self._outcomes([self.task_of(candidate, screens) for candidate in waiting]):
            trained = outcome.trained
            finished = replace(
                done[outcome.index],
                score=trained.score,
                error=trained.error,
                seconds_train=trained.seconds_train,
                seconds_evaluate=trained.seconds_evaluate,
            )
            if screens:
                finished = replace(finished, screened=trained.score)
            elif trained.repaired is not None:
                finished = replace(finished, repaired=trained.repaired)
            done[outcome.index] = finished
            if finished.error:
                log.warning("round %d, %s: the candidate failed: %s", self.number, finished.group, finished.error)
            wins = finished.error is None and self._best([c for c in (best, finished) if c]) is finished
            self.journal.save_candidate(self.number, finished, outcome.weights() if wins and outcome.weights else None)
            if wins:
                if best is not None:
                    self.journal.drop_candidate_weights(self.number, best.index)
                best = finished
            self.progress.candidate_done(finished)
        return tuple(done[candidate.index] for candidate in candidates)

    def keep(self, contenders: Sequence[Candidate]) -> tuple[Candidate, Kept]:
        """Repair candidates as networks that are kept, score them, and keep the best; of equals the first."""
        order = [candidate.index for candidate in contenders]
        best: tuple[float, int] | None = None
        failed = dict[int, str | None]()
        for outcome in self._outcomes([self.task_of(replace(candidate, steps=0)) for candidate in contenders]):
            if outcome.weights is None or outcome.trained.score is None:
                failed[outcome.index] = outcome.trained.error
                continue
            rank = outcome.trained.score, -order.index(outcome.index)
            if best is None or rank > best:
                best, kept = rank, Kept(outcome.weights(), outcome.trained.score, outcome.trained.repaired)
        if best is None:
            first = contenders[0]
            raise SearchError(
                f"Round {self.number}, {first.group}: the network cannot be repaired: {failed[first.index]}."
            )
        for index, error in failed.items():
            log.warning("round %d, candidate %d: it could not be repaired: %s", self.number, index, error)
        return contenders[-best[1]], kept

    def train_again(self, chosen: Candidate) -> bytes:
        """The weights of a winner whose score is known but whose weights were lost: the same seed trains the same."""
        log.warning(
            "round %d, %s: the weights of the winner are missing or damaged; it is trained again",
            self.number, chosen.group,
        )  # fmt: skip
        (outcome,) = self._outcomes([self.task_of(chosen)])
        if outcome.weights is None:
            raise SearchError(
                f"Round {self.number}, {chosen.group}: trained again, the candidate failed: {outcome.trained.error}."
            )
        return outcome.weights()

    def task_of(self, candidate: Candidate, screens: bool = False) -> Task:
        """What is to be done with a candidate: one that may be the last of the search is repaired with refinement."""
        repair = "" if self.position.observed is None else "keep"
        if screens and repair:
            repair = "screen refined" if candidate.refined else "screen"
        few = self.problem.screen is not None or candidate.steps == 0
        if repair == "keep" and few and self.problem.is_met(candidate.resources):
            repair = "refine"
        plan = plan_of(self.position, candidate, self.scores)
        return Task(candidate.index, plan, candidate.steps, candidate.seed, repair, candidate.samples)

    def _outcomes(self, tasks: Sequence[Task]) -> Iterable[Outcome]:
        repair = self.position.observed.repair if self.position.observed is not None else None
        return self.workers.run(self.position.network, self.position.coupling, tasks, repair)

    def _best(self, candidates: list[Candidate]) -> Candidate | None:
        return choose(self.problem, self.position, candidates)
