"""Pruning by data: one pass over calibration batches says which units go, how many of each group, and how the rest
makes good for them. No training, no labels, no search by trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.criteria.curves import Curve, curves
from fxprune.errors import InputError
from fxprune.io.tensors import named_tensors, put_tensors, tensors_of, to_bytes
from fxprune.journal.protocol import Journal
from fxprune.journal.records import Candidate, Round
from fxprune.problem.inputs import graph_like
from fxprune.problem.search_problem import Problem
from fxprune.search.allocation import allocate
from fxprune.search.proposals import evaluate as resources_at
from fxprune.search.rounds import Found
from fxprune.training.candidate import Evaluate, score_of, seeded
from passes import (
    Coupling,
    Group,
    PassError,
    Plan,
    PruneChannels,
    Statistics,
    apply_plan,
    compensate,
    observe,
    refine,
    repairs_of,
)  # fmt: skip
from passes.repair import SegmentRepair
from passes.repair.batch_norms import settled
from passes.repair.compensation import LayerRepair, copied_network
from passes.statistics import Batch, batches_of
from passes.statistics.divergence import divergence, outputs_of
from passes.statistics.observing import inputs_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Batches that are fitted to, and held-out ones that judge."""

    fitted: list[Batch]
    held: list[Batch]


@dataclass(frozen=True)
class Repaired:
    """A network pruned by data, with all that was found on the way.

    sliced, compensated, divergence: how far outputs on held-out data are from the dense ones after slicing, after the
    closed form, and at the end.
    """

    network: nn.Module
    plan: Plan
    curves: dict[str, Curve]
    layers: tuple[LayerRepair, ...]
    segments: tuple[SegmentRepair, ...]
    sliced: float
    compensated: float
    divergence: float


def calibration_of(dense: nn.Module, coupling: Coupling, batches: Any) -> Calibration:
    """The batches of a caller, checked, the last fifth of the samples held out. Raises InputError."""
    try:
        listed = list(batches_of(dense, batches, inputs_of(coupling)))
    except PassError as error:
        raise InputError(f"netadapt: calibration: {error}") from error
    if not listed:
        raise InputError("netadapt: calibration holds no batch; pass at least one, of what the network takes.")
    if len(listed) >= 5:
        cut = len(listed) - len(listed) // 5
        return Calibration(listed[:cut], listed[cut:])
    fitted, held = [], []
    for batch in listed:
        cut = batch.size - max(1, batch.size // 5)
        if batch.size < 2:
            fitted.append(batch)
            continue
        fitted.append(batch.part(0, cut))
        held.append(batch.part(cut, batch.size))
    if not held:
        raise InputError(
            "netadapt: calibration: a single sample cannot be both fitted to and held out; pass at least two samples."
        )
    return Calibration(fitted, held)


def repaired(
    dense: nn.Module, coupling: Coupling, plan: Plan, statistics: Statistics, calibration: Calibration,
    made: dict[str, Curve], *, example_inputs: Any = None, rounds: int = 3, seed: int = 0,
    progress: Callable[[SegmentRepair], None] | None = None,
) -> Repaired:  # fmt: skip
    """The network that `plan` leaves, compensated, refined on its own inputs, its norms settled on what they read."""
    expected = outputs_of(dense, calibration.held)
    sliced = apply_plan(dense, plan)
    closed = compensate(sliced, statistics, plan, dense)
    layers = repairs_of(closed)
    before, compensated = (divergence(n, calibration.held, expected) for n in (sliced, closed))
    start = closed if compensated < before else sliced
    segments: tuple[SegmentRepair, ...] = ()
    network, best = start, min(before, compensated)
    if rounds:
        refined, segments = refined_of(
            dense, coupling, start, plan, example_inputs, calibration, rounds=rounds, seed=seed, progress=progress
        )
        found = divergence(refined, calibration.held, expected)
        if found < best:
            network, best = refined, found
    network = settled(network, calibration.fitted)
    return Repaired(network, plan, made, layers, segments, before, compensated, best)


def refined_of(
    dense: nn.Module, coupling: Coupling, start: nn.Module, plan: Plan, example_inputs: Any, calibration: Calibration,
    *, rounds: int, seed: int, progress: Callable[[SegmentRepair], None] | None = None,
) -> tuple[nn.Module, tuple[SegmentRepair, ...]]:  # fmt: skip
    """`start` refined segment by segment. A module is refined in its graph, and takes the weights back.

    A module whose graph cannot be captured, or has other groups, stays as it is; the log says so.
    """
    chosen: dict[str, Any] = {"held": calibration.held, "rounds": rounds, "seed": seed, "progress": progress}
    if isinstance(dense, GraphModule) and isinstance(start, GraphModule):
        refined = refine(start, plan, dense, calibration.fitted, **chosen)
        return refined.network, refined.segments
    try:
        gm, own = graph_like(dense, coupling, example_inputs)
    except InputError as error:
        log.warning("the weights are compensated in closed form only: refinement needs a graph. %s", error)
        return start, ()
    if any(not _same(own.group(group.name), group) for group in coupling.groups):
        log.warning("the weights are compensated in closed form only: the graph has its units in other places")
        return start, ()
    same = replace(plan, fingerprint=own.fingerprint, inputs=own.inputs)
    cut = PruneChannels(same)(gm).graph_module
    mine = dict(named_tensors(start))
    if any(name not in mine or mine[name].shape != tensor.shape for name, tensor in named_tensors(cut)):
        log.warning("the weights are compensated in closed form only: the graph names its tensors in another way")
        return start, ()
    put_tensors(cut, {name: mine[name] for name, _ in named_tensors(cut)})
    refined = refine(cut, same, gm, calibration.fitted, **chosen)
    made = copied_network(start)
    own_tensors = dict(named_tensors(made))
    with torch.no_grad():
        for name, tensor in named_tensors(refined.network):
            own_tensors[name].copy_(tensor)
    return made, refined.segments


def _same(first: Group, second: Group) -> bool:
    """Whether two groups of a name hold the same positions of the same tensors."""
    mine, theirs = ({(s.tensor, s.dim): s.index for s in group.slices} for group in (first, second))
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


def search_with_data(
    problem: Problem, batches: Any, evaluate: Evaluate | None, journal: Journal, refine_rounds: int = 3
) -> Found:
    """One round: observe, draw the curves, allocate widths within the budgets, prune, repair.

    Its score is what `evaluate` says, or without it minus the divergence from the dense outputs on held-out data.
    """
    from fxprune.search.rounds import Found, measure

    known = journal.round(1)
    if known is not None:
        return Found((known,), 1, "the budget is met", True)
    begun = time.perf_counter()
    dense, coupling = problem.dense, problem.coupling
    calibration = calibration_of(dense, coupling, batches)
    with seeded(problem.seed):
        criterion = problem.config.criterion
        gradients = "sampled" if criterion in ("fisher", "taylor") else None
        statistics = observe(dense, coupling, calibration.fitted, seed=problem.seed, gradients=gradients)
        log.info("observed %d samples; %.0f MB of sums", statistics.samples, statistics.size_bytes / 1e6)
        made = curves(
            dense, coupling, statistics, calibration.held, criterion=criterion, groups=list(problem.grids),
            seed=problem.seed,
        )  # fmt: skip
        errors = {name: curve.errors for name, curve in made.items()}
        widths = allocate(problem.resources, coupling.widths, problem.limits, problem.grids, errors)
        if widths is None:
            return Found((), 0, "no widths meet the budget", False)
        plan = coupling.plan({name: made[name].keep(width) for name, width in widths.items()})
        found = repaired(
            dense, coupling, plan, statistics, calibration, made,
            example_inputs=problem.example_inputs, rounds=refine_rounds, seed=problem.seed,
            progress=lambda s: log.info("%s: %.4f -> %.4f of the variance explained", s.last, s.before, s.after),
        )  # fmt: skip
    predicted = resources_at(problem.resources, {**coupling.widths, **widths})
    _, measured = measure(problem, problem.resources, found.network, predicted)
    score = -found.divergence if evaluate is None else score_of(evaluate(found.network.eval()))
    lost = float(sum(errors[name][width] for name, width in widths.items()))
    names = list(widths)
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    candidate = Candidate(0, name, widths, predicted, True, lost, problem.seed, 0, True, score)
    achieved = {**predicted, **measured}
    reason = (
        f"allocated over {len(made)} curves; divergence {found.sliced:.4g} sliced, {found.compensated:.4g} "
        f"compensated, {found.divergence:.4g} refined"
    )
    record = Round(
        1, problem.limits, achieved, predicted, measured, 0, reason, score, (candidate,),
        {**coupling.widths, **widths}, plan.to_json(), time.perf_counter() - begun,
    )  # fmt: skip
    with torch.no_grad():
        journal.save_round(record, to_bytes(tensors_of(found.network)))
    met = all(achieved[name] <= limit for name, limit in problem.limits.items())
    return Found((record,), 1, "the budget is met" if met else "measured, the network misses its budget", met)
