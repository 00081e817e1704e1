"""The rounds of NetAdapt: propose, fine-tune, evaluate, choose, until the budgets are met.

Yang et al., NetAdapt, ECCV 2018, Algorithm 1. Deterministic: the seed of a candidate derives from the run's seed, the
round and the group; ties go to the proposal that comes first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fxprune.criteria.blocks import block_importance_lost
from fxprune.criteria.registry import Ranker, ranked
from fxprune.criteria.weight_norms import importance_lost, producer_count
from fxprune.errors import SearchError
from fxprune.io.tensors import from_bytes, named_tensors, put_tensors, to_bytes
from fxprune.journal.protocol import Journal
from fxprune.journal.rebuilding import restore_network
from fxprune.journal.records import Round
from fxprune.problem.blocks import groups_within, left_open
from fxprune.problem.equal_widths import Linked
from fxprune.problem.search_problem import Problem
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import MeasuredResource, Resource, finite_measurement
from fxprune.search.candidates import CandidateRuns, Kept, as_candidates
from fxprune.search.choosing import choose, contenders, reason_of
from fxprune.search.observed import observed
from fxprune.search.position import Position, Ranks, plan_of, score_of_chosen
from fxprune.search.progress import Progress
from fxprune.search.proposals import Proposal
from fxprune.search.screening import train_all
from fxprune.search.strategies.protocol import Situation, proposals_of
from fxprune.workers.coupled_network import CoupledNetwork
from fxprune.workers.protocol import Workers
from passes import Plan, apply_plan

log = logging.getLogger(__name__)

LANDED = 0.98  # a budget of which so much is used is well used


@dataclass(frozen=True)
class Found:
    """How a search ended; `accepted` is the round whose network is returned, 0 for the unpruned one."""

    rounds: tuple[Round, ...]
    accepted: int
    stopped: str
    met: bool


def search(problem: Problem, baseline: float, workers: Workers, journal: Journal, progress: Progress) -> Found:
    """Run rounds until the budgets are met, or no more may be run or is feasible."""
    config = problem.config
    position: Position | None = Position(
        problem.dense,
        problem.coupling,
        problem.coupling.plan({}),
        problem.coupling.full_widths,
        problem.resources,
        dict(problem.start),
        0.0 if problem.screen == 0 else baseline,
        0.0,
    )
    rounds: list[Round] = []
    achieved, accepted, below = dict(problem.start), 0, 0
    while True:
        if met := problem.is_met(achieved):
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
            result = run_round(problem.during(number), position, number, workers, journal, progress)
            if result is None:
                stopped = f"no proposal of round {number} meets its target"
                break
            record, position = result
        rounds.append(record)
        achieved = record.achieved
        progress.round_done(record)
        below = below + 1 if config.min_accuracy is not None and record.score < config.min_accuracy else 0
        accepted = accepted if below else number
        if position is not None:
            keep_weights(problem, journal, accepted, number)
        if below > config.patience:
            stopped = f"the score fell below min_accuracy={config.min_accuracy:g}"
            break
    met = met and accepted == len(rounds)
    while (record := journal.round(len(rounds) + 1)) is not None:  # of a goal that went further
        rounds.append(record)
    keep_weights(problem, journal, accepted, len(rounds))
    return Found(tuple(rounds), accepted, stopped, met)


def keep_weights(problem: Problem, journal: Journal, accepted: int, last: int) -> None:
    """Remove what `keep_rounds` asks for: never the weights of the network that is returned, or that others go on
    from."""
    if (count := problem.config.keep_rounds) is not None:
        journal.keep_weights({accepted, *range(last - count + 1, last + 1)})


def run_round(
    problem: Problem, position: Position, number: int, workers: Workers, journal: Journal, progress: Progress
) -> tuple[Round, Position] | None:
    """One round from here; None if nothing that could be proposed meets the targets."""
    begun = time.perf_counter()
    targets = round_targets(problem, position, number)
    position, scores, lost = rankings(problem, position, workers, journal, progress)
    proposals = make_proposals(problem, position, targets, lost)
    candidates = as_candidates(problem, number, proposals, lost)
    if not any(candidate.feasible for candidate in candidates):
        return None
    proposed = {candidate.index for candidate in candidates}
    progress.round_started(number, targets, sum(candidate.trained for candidate in candidates))
    runs = CandidateRuns(problem, position, number, scores, workers, journal, progress)
    candidates = train_all(runs, candidates)
    chosen = choose(problem, position, candidates)
    if chosen is None:
        reasons = "; ".join(f"{c.group}: {c.error}" for c in candidates if c.error)
        raise SearchError(f"Round {number}: every candidate failed. {reasons}.")
    reason = reason_of(problem, position, chosen, candidates)
    kept: Kept | None = None
    if problem.calibration is not None and not problem.moves:
        rivals = contenders(problem, chosen, candidates, proposed)
        progress.stage(f"round {number}: repairing the network that was chosen", f"the best of {len(rivals)}")
        chosen, kept = runs.keep(rivals)
        if len(rivals) > 1:
            reason += f"; of the {len(rivals)} best, each refined, candidate {chosen.index} is nearest"
    plan = plan_of(position, chosen, scores)
    network: nn.Module | None = None  # made where somebody needs more than its costs
    if problem.moves or any(isinstance(resource, MeasuredResource) for resource in position.resources):
        network = apply_plan(position.network, plan)
    weights: bytes | None = None
    if kept is not None:
        weights = kept.weights
    elif problem.trains:
        weights = journal.candidate_weights(number, chosen.index)
        if weights is None:
            weights = runs.train_again(chosen)
    elif journal.keeps_untrained and not any(p.is_meta for p in position.network.parameters()):
        weights = to_bytes(dict(named_tensors(network or apply_plan(position.network, plan))))
    if network is not None and weights is not None and (kept is not None or problem.trains):
        put_tensors(network, from_bytes(weights))
    progress.stage(f"round {number}: measuring and recording the network that was chosen")
    resources, measured = measure(problem, position.resources, network, chosen.resources)
    moved = problem.moves
    after = Position(
        network if network is not None and moved else position.network,
        position.coupling.after(plan) if moved else position.coupling,
        position.plan.then(plan) if moved else position.plan,
        {**position.widths, **chosen.widths},
        resources,
        {**chosen.resources, **measured},
        score_of_chosen(chosen),
        position.lost + chosen.lost,
        None if moved else position.observed,
        None if moved else position.ranks,
    )
    repaired = kept.repaired if kept is not None else chosen.repaired
    reason += f"; {repaired}" if repaired is not None else ""
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


def rankings(
    problem: Problem, position: Position, workers: Workers, journal: Journal, progress: Progress
) -> tuple[Position, Ranks, Ranks]:
    """How much each unit of each group is needed, and what each width loses: by the data where there are some, else by
    the weights. Units in outer blocks (heads) are formed by rank."""
    metric, seed = problem.config.metrics, problem.seed
    if position.observed is None and position.ranks is None:
        coupling = ranked(position.network, position.coupling, metric, seed=seed)
        position = replace(position, coupling=coupling)
        if problem.calibration is not None:
            kept = journal if position.network is problem.dense else None
            network, plan = position.network, position.plan
            dense = CoupledNetwork.of(network, coupling, problem.example_inputs, problem.dense, plan)
            found = observed(problem, problem.calibration, dense, workers, kept, progress)
            position = replace(position, observed=found)
        else:
            groups = [coupling.group(name) for name in problem.grids if name in coupling.variables]
            ranker = Ranker(metric, position.network, seed=seed)
            scores = {group.name: ranker(group).scores for group in groups}
            position = replace(position, ranks=scores)
    if position.observed is not None:
        return position, position.observed.scores, position.observed.lost(position.widths)
    scores, lost = position.ranks or {}, {}
    for name, units in scores.items():
        whole = importance_lost(units, producer_count(position.coupling.group(name)))
        lost[name] = np.maximum(0.0, whole - whole[position.widths[name]])
    for name in position.coupling.blocks if position.ranks is not None else ():
        whole = block_importance_lost(position.network, position.coupling, name, metric, seed)
        lost[name] = np.maximum(0.0, whole - whole[position.widths[name]])
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
    """What the strategy proposes. Where a proposal would meet the budget and leave a part of it unused, all are made
    anew from finer widths: `problem.last_grids`."""
    found = proposals_from(problem.grids, problem, position, targets, lost)
    counted = all(getattr(resource, "monotone", False) for resource in position.resources)
    if counted and problem.last_grids != problem.grids and any(_wasteful(problem, proposal) for proposal in found):
        finer = proposals_from(problem.last_grids, problem, position, targets, lost)
        return finer if any(proposal.meets for proposal in finer) else found
    return found


def _wasteful(problem: Problem, proposal: Proposal) -> bool:
    """Whether a proposal meets every limit and uses less than `LANDED` of each."""
    used = max(proposal.resources[name] / limit for name, limit in problem.limits.items())
    return proposal.meets and used < LANDED


def proposals_from(
    grids: Mapping[str, Grid],
    problem: Problem,
    position: Position,
    targets: Mapping[str, float],
    lost: Mapping[str, np.ndarray],
) -> list[Proposal]:
    linked, within = Linked(problem.equal, problem.coupling.widths), groups_within(problem.coupling)
    grids = left_open(grids, within, position.widths)
    situation = Situation(
        position.coupling, linked.resources(position.resources), position.widths, problem.coupling.full_widths, targets,
        problem.limits, linked.grids(grids), linked.lost(lost), problem.scored, problem.config.joint,
        within,
    )  # fmt: skip
    proposals = proposals_of(problem.strategy, situation)
    return [replace(proposal, widths=linked.widths(proposal.widths)) for proposal in proposals]


def measure(
    problem: Problem, resources: tuple[Resource, ...], network: nn.Module | None, predicted: Mapping[str, float]
) -> tuple[tuple[Resource, ...], dict[str, float]]:
    """Measure the network where a resource can be, and calibrate the resource by what was found."""
    calibrated, measured = [], {}
    for resource in resources:
        if isinstance(resource, MeasuredResource) and network is not None:
            found = finite_measurement(resource, network, problem.example_inputs)
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
    score = score_of_chosen(last.winner)
    return Position(network, coupling, plan, dict(last.widths), resources, last.achieved, score, lost)
