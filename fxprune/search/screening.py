"""The candidates of a round, compared: by their outputs without training where data allow it, and by training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fxprune.journal.protocol import Journal
from fxprune.journal.records import Candidate
from fxprune.problem.blocks import groups_within, left_open
from fxprune.problem.equal_widths import Linked
from fxprune.problem.search_problem import Problem
from fxprune.search.candidates import as_candidates, run_all
from fxprune.search.choosing import choose
from fxprune.search.joint_widths import Widths, effort_for, improve
from fxprune.search.position import Position
from fxprune.search.progress import Progress
from fxprune.search.proposals import Proposal, evaluate
from fxprune.workers.protocol import Workers


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

    def screened(proposed: Sequence[Candidate]) -> tuple[Candidate, ...]:
        untrained = tuple(replace(candidate, steps=0) for candidate in proposed)
        return run_all(problem, position, number, untrained, scores, workers, journal, progress, screens=True)

    compared = screened(candidates)
    if problem.strategy == "allocate":
        compared = _improved(problem, position, number, compared, screened, progress)
    if not problem.screen:
        return compared
    ordered = sorted((c for c in compared if c.screened is not None), key=lambda c: (-(c.screened or 0.0), c.index))
    best = {c.index for c in ordered[: problem.screen]}
    steps = problem.config.netadapt_max_iter if problem.trains else 0
    chosen = tuple(
        replace(c, score=None, steps=steps if c.index in best else 0, trained=c.index in best) for c in compared
    )
    progress.round_started(number, {}, len(best))
    return run_all(problem, position, number, chosen, scores, workers, journal, progress)


def _improved(
    problem: Problem, position: Position, number: int, compared: tuple[Candidate, ...],
    screened: Callable[[Sequence[Candidate]], tuple[Candidate, ...]], progress: Progress,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Joint candidates, with those that were found around the best of them."""
    best, linked = choose(problem, position, compared), Linked(problem.equal, problem.coupling.widths)
    if best is None or position.observed is None:
        return compared
    start = {**position.widths, **best.widths}
    grids = linked.grids(left_open(problem.last_grids, groups_within(problem.coupling), start))
    grids = {name: grid for name, grid in grids.items() if start[name] and name not in problem.coupling.blocks}
    effort = effort_for(len(grids), position.observed.repair.macs, problem.config.sweeps)
    found = list(compared)
    count, lost = len(compared), position.observed.lost(position.widths)

    def narrower(widths: Widths) -> dict[str, int]:
        return {name: width for name, width in linked.widths(widths).items() if width < position.widths[name]}

    def candidates_of(widths: Sequence[Widths], samples: int | None = None) -> tuple[Candidate, ...]:
        """Candidates of widths of all groups; samples: they are only measured, on so many."""
        nonlocal count
        progress.round_started(number, {}, len(widths))
        proposals = [_proposal(problem, position, narrower(one)) for one in widths]
        made = as_candidates(problem, number, proposals, lost, count)
        count += len(made)
        return screened([replace(candidate, trained=True, samples=samples) for candidate in made])

    def measure(widths: Sequence[Widths]) -> list[float | None]:
        """The network as it is, which no candidate is, is not measured."""
        places = [place for place, one in enumerate(widths) if narrower(one)]
        made = candidates_of([widths[place] for place in places], effort.samples)
        errors = dict(zip(places, map(_error, made), strict=True))
        return [errors.get(place) for place in range(len(widths))]

    def compare(widths: Widths) -> float | None:
        found.extend(candidates_of([widths]))
        return _error(found[-1])

    error = _error(best)
    assert error is not None, "what is chosen has been scored"
    improve(
        linked.resources(position.resources), position.widths, problem.limits, grids, (start, error), effort.sweeps,
        measure, compare,
    )  # fmt: skip
    return tuple(found)


def _proposal(problem: Problem, position: Position, widths: dict[str, int]) -> Proposal:
    used = evaluate(position.resources, {**position.widths, **widths})
    return Proposal(widths, used, problem.is_met(used))


def _error(candidate: Candidate) -> float | None:
    """How far its outputs are from the dense ones; None where it failed."""
    return None if candidate.screened is None else -candidate.screened
