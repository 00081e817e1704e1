"""The problem of a search made of what was asked: resources counted, widths that groups may have, feasibility."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fxprune.config.keys import NetAdaptConfig
from fxprune.config.schedule import check_feasible
from fxprune.errors import BudgetError, InputError
from fxprune.problem.blocks import block_grids
from fxprune.problem.calibration import Calibration
from fxprune.problem.equal_widths import sets_of, with_equal_grids
from fxprune.problem.inputs import Analysed, frozen_reasons
from fxprune.problem.scope import groups_inside, nothing_inside
from fxprune.problem.search_problem import Problem
from fxprune.problem.stock_widths import PRESET, stock_widths
from fxprune.problem.width_grids import Grid, make_grids
from fxprune.registries import RESOURCES
from fxprune.resources.budgets import Budget
from fxprune.resources.kinds import Subject, unit_of
from fxprune.resources.models import Resource
from fxprune.search.proposals import evaluate, least_widths
from fxprune.training.candidate import Evaluate, Train
from passes import cost

log = logging.getLogger(__name__)


def make_problem(
    given: Analysed,
    budgets: tuple[Budget, ...],
    config: NetAdaptConfig,
    seed: int,
    train: Train | None,
    evaluate_: Evaluate | None,
    resources: Sequence[Resource],
    progress: bool,
    scope: tuple[str, ...] = (),
    calibration: Calibration | None = None,
) -> Problem:
    dense, coupling, example_inputs = given.network, given.coupling, given.example_inputs
    offered = {resource.name: resource for resource in resources}
    subject = Subject(dense, coupling, cost(coupling), example_inputs, config, progress)
    chosen: list[Resource] = []
    for budget in budgets:
        name = budget.resource
        chosen.append(offered[name] if name in offered else RESOURCES.find(name).of(name, subject))
    start = evaluate(chosen, coupling.widths)
    if nothing := [budget.resource for budget in budgets if not start[budget.resource] > 0]:
        raise BudgetError(
            f"netadapt: the network uses 0 {unit_of(nothing[0])} of {nothing[0]}, of which nothing can be saved; "
            "budget something else, such as params."
        )
    for budget in budgets:
        if budget.value is not None:
            log.info(
                "%s: the network uses %s %s", budget.resource, f"{start[budget.resource]:,}", unit_of(budget.resource)
            )
    suggested: dict[str, int] = {}
    for resource in chosen if config.step == "auto" else ():
        suggested.update(getattr(resource, "steps", dict)())
    fine = calibration is not None and all(budget.resource != "latency" for budget in budgets)
    stock = stock_widths(dense, coupling, example_inputs) if config.same_width == PRESET else None
    equal = sets_of(config.same_width, coupling) if stock is None else stock.sets
    allowed = set(groups_inside(coupling, scope) if scope else coupling.widths)
    allowed -= set(stock.excluded) if stock is not None else set()

    def grids(last: bool) -> dict[str, Grid]:
        made = make_grids(dense, coupling, config, suggested, fine, last) if coupling.groups else {}
        made = {name: grid for name, grid in made.items() if name in allowed}
        made = with_equal_grids(made, equal, coupling.widths, stock.steps if stock is not None else None)
        return {**made, **block_grids(dense, coupling, config, scope)}

    return Problem(
        dense, coupling, tuple(chosen), budgets, start, grids(last=False), config, seed or config.seed, example_inputs,
        train is not None and evaluate_ is not None, evaluate_ is not None, torch.get_num_threads(),
        given.form, scope, calibration, equal, grids(last=True), stock,
    )  # fmt: skip


def check_problem(problem: Problem) -> None:
    """Refuse, before any training, what no search could do."""
    if not problem.coupling.groups:
        raise InputError(f"netadapt: the network has no prunable group: {frozen_reasons(problem.coupling)}.")
    if problem.scope and not groups_inside(problem.coupling, problem.scope):
        raise InputError(
            f"netadapt: no group lies in the scope {list(problem.scope)}: "
            f"{nothing_inside(problem.coupling, problem.scope)}."
        )
    if not problem.grids and problem.stock is not None and not problem.stock.places:
        name, why = next(iter(problem.stock.excluded.items()))
        raise InputError(
            f"netadapt: same_width: {PRESET!r}: no group can shrink so: {name}: {why}. Use 'blocks' instead."
        )
    if not problem.grids:
        widest = max(group.size for group in problem.coupling.groups)
        raise InputError(
            f"netadapt: the network has {len(problem.coupling.groups)} groups of up to {widest} units, and the "
            "configuration lets none of them shrink; lower netadapt_min_feature_size, step or round_to, or let "
            "more layers be pruned (exclude, sparsity, max_prune)."
        )
    widths = problem.coupling.full_widths
    least = evaluate(problem.resources, least_widths(widths, problem.grids))
    at_once = problem.strategy == "allocate"
    check_feasible(problem.budgets, problem.start, least, None if at_once else problem.config.schedule)
    most = 0 if at_once else problem.config.netadapt_max_rounds
    for budget in problem.budgets:
        share = budget.limit(problem.start[budget.resource]) / problem.start[budget.resource]
        needed = problem.config.schedule.rounds(share)
        if needed is not None and 0 < most < needed:
            log.warning(
                "%s: rounds that hit their targets exactly take %d to the budget, and netadapt_max_rounds is %d",
                budget.resource, needed, most,
            )  # fmt: skip
