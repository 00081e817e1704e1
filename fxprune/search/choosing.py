"""Which candidate of a round becomes the network of the next, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from fxprune.journal.records import Candidate
from fxprune.problem.search_problem import Problem
from fxprune.search.position import Position, score_of_chosen


def choose(
    problem: Problem, position: Position, candidates: list[Candidate] | tuple[Candidate, ...]
) -> Candidate | None:
    """The feasible candidate with the best score or score change per resource saved (`by_ratio`); of equals the
    first."""
    scored = [c for c in candidates if c.feasible and c.score is not None and c.error is None]
    if not scored:
        return None
    return max(scored, key=lambda c: (merit(problem, position, c), -c.index))


def contenders(
    problem: Problem, chosen: Candidate, candidates: Sequence[Candidate], proposed: Collection[int]
) -> list[Candidate]:
    """The chosen candidate and others that may be better once all are refined: the next ones, and of those that were
    `proposed` at first the best, which is the least like the others.

    The chosen one alone where the network of this round is not the last of the search: then it is not refined.
    """
    refines = problem.is_met(chosen.resources) and problem.config.refine and problem.config.compensate
    count = problem.config.refined if refines else 1
    scored = [c for c in candidates if c.feasible and c.screened is not None and c.error is None and c is not chosen]
    scored = [c for c in scored if problem.is_met(c.resources)]
    scored.sort(key=lambda c: (-(c.screened or 0.0), c.index))
    first = [c for c in scored if c.index in proposed][:1]
    return [chosen, *first, *(c for c in scored if c not in first)][:count]


def by_ratio(problem: Problem) -> bool:
    """Whether candidates are compared by their score change per resource saved.

    Always without `evaluate` and data: an accuracy is a judgement of the whole network, but the importance lost is a
    price, and proposals overshoot a round's target by very different amounts (a step of the latency, a wide group's
    step).
    """
    return problem.config.select == "ratio" or not problem.scored


def merit(problem: Problem, position: Position, candidate: Candidate) -> float:
    score = score_of_chosen(candidate)
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
