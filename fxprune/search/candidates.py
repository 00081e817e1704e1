"""The candidates of a round: compared without training where there are calibration data, trained, and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from fxprune.workers.protocol import Task, Workers
from fxprune.workers.repair import Repair

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


def run_all(
    problem: Problem,
    position: Position,
    number: int,
    candidates: tuple[Candidate, ...],
    scores: Mapping[str, np.ndarray],
    workers: Workers,
    journal: Journal,
    progress: Progress,
    screens: bool = False,
) -> tuple[Candidate, ...]:
    """Those that are marked `trained` are run, in parallel where there are workers, and journalled.

    screens: they are repaired and compared by their outputs alone.
    """
    done = {candidate.index: candidate for candidate in candidates}
    waiting = []
    for candidate in candidates:
        known = journal.candidate(number, candidate) if candidate.trained else None
        if known is not None and screens and known.screened is not None:
            known = replace(known, score=known.screened, steps=0, trained=True)
        elif known is not None and (known.score is None and known.error is None or known.steps != candidate.steps):
            known = None  # it was only screened
        if known is not None:
            done[candidate.index] = known
            progress.candidate_done(known)
        elif candidate.trained:
            waiting.append(candidate)
    best = choose(problem, position, [c for c in done.values() if c.score is not None])
    tasks = [task_of(problem, position, c, scores, screens) for c in waiting]
    for outcome in workers.run(position.network, position.coupling, tasks, _repair_of(position)):
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
            log.warning("round %d, %s: the candidate failed: %s", number, finished.group, finished.error)
        wins = finished.error is None and choose(problem, position, [c for c in (best, finished) if c]) is finished
        journal.save_candidate(number, finished, outcome.weights() if wins and outcome.weights else None)
        if wins:
            if best is not None:
                journal.drop_candidate_weights(number, best.index)
            best = finished
        progress.candidate_done(finished)
    return tuple(done[candidate.index] for candidate in candidates)


def task_of(
    problem: Problem, position: Position, candidate: Candidate, scores: Mapping[str, np.ndarray], screens: bool = False
) -> Task:
    """What is to be done with a candidate: one that may be the last of the search is repaired with refinement."""
    repair = "" if position.observed is None else "screen" if screens else "keep"
    few = problem.screen is not None or candidate.steps == 0
    if repair == "keep" and few and problem.is_met(candidate.resources):
        repair = "refine"
    plan = plan_of(position, candidate, scores)
    return Task(candidate.index, plan, candidate.steps, candidate.seed, repair, candidate.samples)


@dataclass(frozen=True)
class Kept:
    """The chosen network of a round as it is kept: weights, score, and what repair did to it."""

    weights: bytes
    score: float
    repaired: Repaired | None


def keep(
    problem: Problem,
    position: Position,
    contenders: Sequence[Candidate],
    scores: Mapping[str, np.ndarray],
    workers: Workers,
    number: int,
) -> tuple[Candidate, Kept]:
    """Repair candidates as networks that are kept, score them, and keep the best; of equals the first."""
    tasks = [task_of(problem, position, replace(candidate, steps=0), scores) for candidate in contenders]
    order = [candidate.index for candidate in contenders]
    best: tuple[float, int] | None = None
    failed = dict[int, str | None]()
    for outcome in workers.run(position.network, position.coupling, tasks, _repair_of(position)):
        if outcome.weights is None or outcome.trained.score is None:
            failed[outcome.index] = outcome.trained.error
            continue
        rank = outcome.trained.score, -order.index(outcome.index)
        if best is None or rank > best:
            best, kept = rank, Kept(outcome.weights(), outcome.trained.score, outcome.trained.repaired)
    if best is None:
        first = contenders[0]
        raise SearchError(f"Round {number}, {first.group}: the network cannot be repaired: {failed[first.index]}.")
    for index, error in failed.items():
        log.warning("round %d, candidate %d: it could not be repaired: %s", number, index, error)
    return contenders[-best[1]], kept


def _repair_of(position: Position) -> Repair | None:
    return position.observed.repair if position.observed is not None else None


def train_again(
    problem: Problem,
    position: Position,
    chosen: Candidate,
    scores: Mapping[str, np.ndarray],
    workers: Workers,
    number: int,
) -> bytes:
    """The weights of a winner whose score is known but whose weights were lost: the same seed trains the same."""
    log.warning(
        "round %d, %s: the weights of the winner are missing or damaged; it is trained again", number, chosen.group
    )
    task = task_of(problem, position, chosen, scores)
    (outcome,) = workers.run(position.network, position.coupling, [task], _repair_of(position))
    if outcome.weights is None:
        raise SearchError(
            f"Round {number}, {chosen.group}: trained again, the candidate failed: {outcome.trained.error}."
        )
    return outcome.weights()
