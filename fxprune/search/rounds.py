"""The rounds of NetAdapt: propose, fine-tune, evaluate, choose, until the budgets are met.

Yang et al., NetAdapt, ECCV 2018, Algorithm 1. Deterministic: the seed of a candidate derives from the run's seed, the
round and the group; ties go to the proposal that comes first.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fxprune.criteria.registry import rank, ranked
from fxprune.criteria.weight_norms import importance_lost, keep_units, producer_count
from fxprune.errors import SearchError
from fxprune.io.tensors import from_bytes, put_tensors, tensors_of, to_bytes
from fxprune.journal.protocol import Journal
from fxprune.journal.rebuilding import restore_network
from fxprune.journal.records import Candidate, Round
from fxprune.problem.equal_widths import Linked
from fxprune.problem.search_problem import Problem
from fxprune.registries import STRATEGIES
from fxprune.resources.models import MeasuredResource, Resource
from fxprune.search.observed import Observed, observed
from fxprune.search.progress import Progress
from fxprune.search.proposals import Proposal, evaluate
from fxprune.search.strategies.protocol import Situation, proposals_of
from fxprune.training.candidate import seed_of
from fxprune.training.repaired import Repaired
from fxprune.workers.protocol import Task, Workers
from fxprune.workers.repair import Repair
from passes import Coupling, Plan, apply_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a search stands after some rounds: its widths, and what they use.

    network: what candidates are cut from; `plan` makes it of the unpruned one. It is that of the last round, but with
    calibration data and without training the unpruned one, since what is cut and repaired at once is nearest to it.
    observed: what the data say of it.
    """

    network: nn.Module
    coupling: Coupling
    plan: Plan
    widths: dict[str, int]
    resources: tuple[Resource, ...]
    achieved: dict[str, float]
    score: float
    lost: float
    observed: Observed | None = None

    @property
    def narrowed(self) -> dict[str, int]:
        """The groups that are narrower than those of `network`."""
        return {name: width for name, width in self.widths.items() if width < self.coupling.widths[name]}


@dataclass(frozen=True)
class Found:
    """How a search ended; `accepted` is the round whose network is returned, 0 for the unpruned one."""

    rounds: tuple[Round, ...]
    accepted: int
    stopped: str
    met: bool


def search(problem: Problem, baseline: float, workers: Workers, journal: Journal, progress: Progress) -> Found:
    """Run rounds until the budgets are met, or no more may be run or is feasible."""
    config, limits = problem.config, problem.limits
    position: Position | None = Position(
        problem.dense,
        problem.coupling,
        problem.coupling.plan({}),
        dict(problem.coupling.widths),
        problem.resources,
        dict(problem.start),
        0.0 if problem.screen == 0 else baseline,
        0.0,
    )
    rounds: list[Round] = []
    achieved, accepted, below = dict(problem.start), 0, 0
    while True:
        if met := all(achieved[name] <= limit for name, limit in limits.items()):
            stopped = "the budget is met"
            break
        number = len(rounds) + 1
        if 0 < config.netadapt_max_rounds < number:
            stopped = f"netadapt_max_rounds={config.netadapt_max_rounds} is reached"
            break
        record = journal.round(number)
        if record is not None:
            position = None  # of the rounds that are remembered only the last need be built
        else:
            position = position or position_after(problem, rounds, journal)
            result = run_round(problem, position, number, workers, journal, progress)
            if result is None:
                stopped = f"no proposal of round {number} meets its target"
                break
            record, position = result
        rounds.append(record)
        achieved = record.achieved
        progress.round_done(record)
        below = below + 1 if config.min_accuracy is not None and record.score < config.min_accuracy else 0
        accepted = accepted if below else number
        if below > config.patience:
            stopped = f"the score fell below min_accuracy={config.min_accuracy:g}"
            break
    return Found(tuple(rounds), accepted, stopped, met and accepted == len(rounds))


def run_round(
    problem: Problem, position: Position, number: int, workers: Workers, journal: Journal, progress: Progress
) -> tuple[Round, Position] | None:
    """One round from here; None if nothing that could be proposed meets the targets."""
    begun = time.perf_counter()
    targets = round_targets(problem, position, number)
    position, scores, lost = rankings(problem, position, journal)
    proposals = make_proposals(problem, position, targets, lost)
    candidates = as_candidates(problem, position, number, proposals, lost)
    if not any(candidate.feasible for candidate in candidates):
        return None
    progress.round_started(number, targets, sum(candidate.trained for candidate in candidates))
    candidates = train_all(problem, position, number, candidates, scores, workers, journal, progress)
    chosen = choose(problem, position, candidates)
    if chosen is None:
        reasons = "; ".join(f"{c.group}: {c.error}" for c in candidates if c.error)
        raise SearchError(f"Round {number}: every candidate failed. {reasons}.")
    plan = plan_of(position, chosen, scores)
    network = apply_plan(position.network, plan)
    kept: Kept | None = None
    if problem.calibration is not None and (problem.screen == 0 or not problem.trains):
        kept = keep(problem, position, chosen, scores, workers, number)
        weights: bytes | None = kept.weights
    elif problem.trains:
        weights = journal.candidate_weights(number, chosen.index)
        if weights is None:
            weights = train_again(problem, position, chosen, scores, workers, number)
    else:
        weights = to_bytes(tensors_of(network)) if journal.keeps_untrained else None
    if weights is not None and (kept is not None or problem.trains):
        put_tensors(network, from_bytes(weights))
    resources, measured = measure(problem, position.resources, network, chosen.resources)
    moved = problem.moves
    after = Position(
        network if moved else position.network,
        position.coupling.after(plan) if moved else position.coupling,
        position.plan.then(plan) if moved else position.plan,
        {**position.widths, **chosen.widths},
        resources,
        {**chosen.resources, **measured},
        _score(chosen),
        position.lost + chosen.lost,
        None if moved else position.observed,
    )
    repaired = kept.repaired if kept is not None else chosen.repaired
    reason = reason_of(problem, position, chosen, candidates) + (f"; {repaired}" if repaired is not None else "")
    record = Round(
        number,
        targets,
        after.achieved,
        chosen.resources,
        measured,
        chosen.index,
        reason,
        after.score if kept is None else kept.score,
        candidates,
        dict(after.widths),
        position.plan.then(plan).to_json(),
        time.perf_counter() - begun,
        repaired,
    )
    journal.save_round(record, weights)
    return record, after


Ranks = dict[str, np.ndarray]


def rankings(problem: Problem, position: Position, journal: Journal) -> tuple[Position, Ranks, Ranks]:
    """How much each unit of each group is needed, and what each width loses: by the data where there are some, else by
    the weights. Units in outer blocks (heads) are formed by rank."""
    metric, seed = problem.config.metrics, problem.seed
    if position.observed is None:
        coupling = ranked(position.network, position.coupling, metric, seed=seed)
        position = replace(position, coupling=coupling)
        if problem.calibration is not None:
            kept = journal if position.network is problem.dense else None
            found = observed(problem, problem.calibration, position.network, coupling, kept)
            position = replace(position, observed=found)
    if position.observed is not None:
        return position, position.observed.scores, position.observed.lost(position.widths)
    groups = [position.coupling.group(name) for name in problem.grids]
    scores = {group.name: rank(metric, position.network, group, seed=seed).scores for group in groups}
    lost = {name: importance_lost(s, producer_count(position.coupling.group(name))) for name, s in scores.items()}
    return position, scores, lost


def round_targets(problem: Problem, position: Position, number: int) -> dict[str, float]:
    limits = problem.limits
    if problem.strategy == "allocate":
        return dict(limits)
    return {
        name: problem.config.schedule.target(
            number, start=problem.start[name], achieved=position.achieved[name], budget=limit
        )
        for name, limit in limits.items()
    }


def make_proposals(
    problem: Problem, position: Position, targets: Mapping[str, float], lost: Mapping[str, np.ndarray]
) -> list[Proposal]:
    """What the strategy proposes."""
    linked = Linked(problem.equal, problem.coupling.widths)
    situation = Situation(
        position.coupling, linked.resources(position.resources), position.widths, problem.coupling.widths, targets,
        problem.limits, linked.grids(problem.grids), linked.lost(lost), problem.scored, problem.config.joint,
    )  # fmt: skip
    proposals = proposals_of(STRATEGIES.find(problem.strategy), situation)
    return [replace(proposal, widths=linked.widths(proposal.widths)) for proposal in proposals]


def as_candidates(
    problem: Problem, position: Position, number: int, proposals: list[Proposal], lost: Mapping[str, np.ndarray]
) -> tuple[Candidate, ...]:
    """The records of a round's proposals; `trained` marks those that are to be trained."""
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
        for index, proposal in enumerate(proposals)
    ]
    feasible = [candidate for candidate in candidates if candidate.feasible]
    feasible.sort(key=lambda candidate: candidate.lost)
    selected = {candidate.index for candidate in feasible[: problem.config.candidates_per_round]}
    return tuple(replace(candidate, trained=candidate.index in selected) for candidate in candidates)


def train_all(
    problem: Problem,
    position: Position,
    number: int,
    candidates: tuple[Candidate, ...],
    scores: Mapping[str, np.ndarray],
    workers: Workers,
    journal: Journal,
    progress: Progress,
) -> tuple[Candidate, ...]:
    """The candidates with their scores. Only the weights of the best so far are kept."""
    if not problem.scored:
        return tuple(replace(c, score=-(position.lost + c.lost)) if c.trained else c for c in candidates)
    if problem.screen is None:
        return run_all(problem, position, number, candidates, scores, workers, journal, progress)
    screening = tuple(replace(c, steps=0) for c in candidates)
    compared = run_all(problem, position, number, screening, scores, workers, journal, progress, screens=True)
    if not problem.screen:
        return compared
    ordered = sorted((c for c in compared if c.screened is not None), key=lambda c: (-(c.screened or 0.0), c.index))
    best = {c.index for c in ordered[: problem.screen]}
    chosen = tuple(
        replace(c, score=None, steps=before.steps if c.index in best else 0, trained=c.index in best)
        for c, before in zip(compared, candidates, strict=True)
    )
    return run_all(problem, position, number, chosen, scores, workers, journal, progress)


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
    if repair == "keep" and few and all(candidate.resources[n] <= limit for n, limit in problem.limits.items()):
        repair = "refine"
    return Task(candidate.index, plan_of(position, candidate, scores), candidate.steps, candidate.seed, repair)


@dataclass(frozen=True)
class Kept:
    """The chosen network of a round as it is kept: weights, score, and what repair did to it."""

    weights: bytes
    score: float
    repaired: Repaired | None


def keep(
    problem: Problem,
    position: Position,
    chosen: Candidate,
    scores: Mapping[str, np.ndarray],
    workers: Workers,
    number: int,
) -> Kept:
    """Repair the chosen candidate as a network that is kept, and score it."""
    task = task_of(problem, position, replace(chosen, steps=0), scores)
    (outcome,) = workers.run(position.network, position.coupling, [task], _repair_of(position))
    if outcome.weights is None or outcome.trained.score is None:
        raise SearchError(f"Round {number}, {chosen.group}: the network cannot be repaired: {outcome.trained.error}.")
    return Kept(outcome.weights(), outcome.trained.score, outcome.trained.repaired)


def _repair_of(position: Position) -> Repair | None:
    return position.observed.repair if position.observed is not None else None


def choose(
    problem: Problem, position: Position, candidates: list[Candidate] | tuple[Candidate, ...]
) -> Candidate | None:
    """The feasible candidate with the best score or score change per resource saved (`by_ratio`); of equals the
    first."""
    scored = [c for c in candidates if c.feasible and c.score is not None and c.error is None]
    if not scored:
        return None
    return max(scored, key=lambda c: (merit(problem, position, c), -c.index))


def by_ratio(problem: Problem) -> bool:
    """Whether candidates are compared by their score change per resource saved.

    Always without `evaluate` and data: an accuracy is a judgement of the whole network, but the importance lost is a
    price, and proposals overshoot a round's target by very different amounts (a step of the latency, a wide group's
    step).
    """
    return problem.config.select == "ratio" or not problem.scored


def merit(problem: Problem, position: Position, candidate: Candidate) -> float:
    score = _score(candidate)
    if not by_ratio(problem):
        return score
    before = position.score if problem.scored else -position.lost
    saved = sum(
        (position.achieved[name] - max(candidate.resources[name], limit)) / problem.start[name]
        for name, limit in problem.limits.items()
        if position.achieved[name] > limit  # below its limit nothing more is worth saving
    )
    return (score - before) / saved if saved > 0 else -math.inf


def reason_of(problem: Problem, position: Position, chosen: Candidate, candidates: tuple[Candidate, ...]) -> str:
    """Why this candidate: one sentence for the record."""
    others = [c for c in candidates if c.feasible and c.score is not None and c.index != chosen.index]
    what = "score change per resource saved" if by_ratio(problem) else "score"
    if not others:
        return "the only candidate that meets the targets"
    best = choose(problem, position, others)
    assert best is not None, "the others are feasible and scored"
    mine, theirs = merit(problem, position, chosen), merit(problem, position, best)
    if mine == theirs:
        return f"best {what} {mine:.6g} of {len(others) + 1}, first of equals"
    return f"best {what} {mine:.6g} of {len(others) + 1}; next {best.group} with {theirs:.6g}"


def plan_of(position: Position, candidate: Candidate, scores: Mapping[str, np.ndarray]) -> Plan:
    """The plan of a candidate, relative to the network of the round: the most important units of each group it
    shrinks."""
    widths = {**position.narrowed, **candidate.widths}
    return position.coupling.plan({name: keep_units(scores[name], width) for name, width in widths.items()})


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


def measure(
    problem: Problem, resources: tuple[Resource, ...], network: nn.Module, predicted: Mapping[str, float]
) -> tuple[tuple[Resource, ...], dict[str, float]]:
    """Measure the network where a resource can be, and calibrate the resource by what was found."""
    calibrated, measured = [], {}
    for resource in resources:
        if isinstance(resource, MeasuredResource):
            found = float(resource.measure(network, problem.example_inputs))
            measured[resource.name] = found
            off = abs(found / predicted[resource.name] - 1)
            if off > 0.1:
                log.warning(
                    "%s: predicted %.4g %s, measured %.4g: off by %.0f %%; the table is calibrated by it",
                    resource.name, predicted[resource.name], resource.unit, found, 100 * off,
                )  # fmt: skip
            resource = resource.calibrated(predicted[resource.name], found)
        calibrated.append(resource)
    return tuple(calibrated), measured


def position_after(problem: Problem, rounds: list[Round], journal: Journal) -> Position:
    """Build the position after rounds that were remembered, not run."""
    last = rounds[-1]
    resources = problem.resources
    for record in rounds:
        resources = tuple(
            r.calibrated(record.predicted[r.name], record.measured[r.name])
            if isinstance(r, MeasuredResource) and r.name in record.measured
            else r
            for r in resources
        )
    lost = sum(record.winner.lost for record in rounds)
    coupling, network, plan = problem.coupling, problem.dense, problem.coupling.plan({})
    if problem.moves:
        plan = Plan.from_json(last.plan)
        network, coupling = restore_network(problem.dense, last, journal), coupling.after(plan)
    score = _score(last.winner)
    return Position(network, coupling, plan, dict(last.widths), resources, last.achieved, score, lost)


def start_values(resources: tuple[Resource, ...], coupling: Coupling) -> dict[str, float]:
    return evaluate(resources, coupling.widths)


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None, "only scored candidates are chosen"
    return candidate.score
