"""The candidates of a round, compared: by their outputs without training where data allow it, and by training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxprune.journal.records import Candidate
from fxprune.problem.blocks import groups_within, left_open
from fxprune.problem.equal_widths import Linked
from fxprune.problem.search_problem import Problem
from fxprune.problem.width_grids import Grid
from fxprune.search.candidates import CandidateRuns, as_candidates
from fxprune.search.choosing import choose
from fxprune.search.joint_widths import Widths, effort_for, improve
from fxprune.search.position import Position
from fxprune.search.proposals import Proposal, evaluate


def train_all(runs: CandidateRuns, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The candidates of a round with their scores, and those that were found around the best of them."""
    problem, position = runs.problem, runs.position
    if not problem.scored:
        return tuple(replace(c, score=-(position.lost + c.lost)) if c.trained else c for c in candidates)
    if problem.screen is None:
        return runs.run_all(candidates)
    compared = _screened(runs, candidates)
    if problem.strategy == "allocate":
        compared = _improved(runs, compared)
    if not problem.screen:
        return compared
    ordered = sorted((c for c in compared if c.screened is not None), key=lambda c: (-(c.screened or 0.0), c.index))
    best = {c.index for c in ordered[: problem.screen]}
    steps = problem.config.netadapt_max_iter if problem.trains else 0
    chosen = tuple(
        replace(c, score=None, steps=steps if c.index in best else 0, trained=c.index in best) for c in compared
    )
    runs.progress.round_started(runs.number, {}, len(best))
    return runs.run_all(chosen)


def _screened(runs: CandidateRuns, proposed: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return runs.run_all([replace(candidate, steps=0) for candidate in proposed], screens=True)


def _improved(runs: CandidateRuns, compared: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Joint candidates, with those that were found around the best of them.

    Where these are refined to be compared, so are the first ones: their errors in closed form are of another kind.
    """
    problem, position = runs.problem, runs.position
    best, linked = choose(problem, position, compared), Linked(problem.equal, problem.coupling.widths)
    if best is None or position.observed is None:
        return compared
    repair = position.observed.repair

    def grids_at(start: Widths) -> dict[str, Grid]:
        grids = linked.grids(left_open(problem.last_grids, groups_within(problem.coupling), start))
        return {name: grid for name, grid in grids.items() if start[name] and name not in problem.coupling.blocks}

    grids = grids_at({**position.widths, **best.widths})
    effort = effort_for(len(grids), repair.macs, problem.config.sweeps, bool(problem.config.sweeps) and repair.refines)
    found = list(compared)
    count, lost = len(compared), position.observed.lost(position.widths)

    def narrower(widths: Widths) -> dict[str, int]:
        return {name: width for name, width in linked.widths(widths).items() if width < position.widths[name]}

    def candidates_of(widths: Sequence[Widths], samples: int | None = effort.samples) -> tuple[Candidate, ...]:
        """Candidates of widths of all groups, compared on so many samples; None: on all."""
        nonlocal count
        runs.progress.round_started(runs.number, {}, len(widths))
        proposals = [_proposal(problem, position, narrower(one)) for one in widths]
        made = as_candidates(problem, runs.number, proposals, lost, count)
        count += len(made)
        return _screened(runs, [replace(c, trained=True, samples=samples, refined=effort.refined) for c in made])

    def measure(widths: Sequence[Widths]) -> list[float | None]:
        """The network as it is, which no candidate is, is not measured."""
        places = [place for place, one in enumerate(widths) if narrower(one)]
        made = candidates_of([widths[place] for place in places])
        errors = dict(zip(places, map(_error, made), strict=True))
        return [errors.get(place) for place in range(len(widths))]

    def compare(widths: Widths) -> float | None:
        found.extend(candidates_of([widths], effort.samples if effort.refined else None))
        return _error(found[-1])

    if effort.refined:
        again = candidates_of([{**position.widths, **c.widths} for c in compared if c.score is not None])
        first = choose(problem, position, again)
        if first is None:
            return compared
        best, found = first, [*(c for c in compared if c.score is None), *again]
    start = {**position.widths, **best.widths}
    error = _error(best)
    assert error is not None, "what is chosen has been scored"
    improve(
        linked.resources(position.resources), position.widths, problem.limits, grids_at(start), (start, error),
        effort.sweeps, measure, compare,
    )  # fmt: skip
    return tuple(found)


def _proposal(problem: Problem, position: Position, widths: dict[str, int]) -> Proposal:
    used = evaluate(position.resources, {**position.widths, **widths})
    return Proposal(widths, used, problem.is_met(used))


def _error(candidate: Candidate) -> float | None:
    """How far its outputs are from the dense ones; None where it failed."""
    return None if candidate.screened is None else -candidate.screened
