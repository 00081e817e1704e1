"""Proposals: for each group the largest width with which the whole network meets the targets of a round.

Pure: widths and resources in, proposals out; no weights, no tracing. All groups are searched at once, one evaluation
of the polynomials a step, so that a round of DenseNet-121 is planned in milliseconds. Yang et al., NetAdapt, ECCV
2018, section 3.2 ("choose number of filters").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Resource, one_at_a_time, value_of

_MOST_SAVED = 4  # a round may save so many times what its target asks for, to reach the next step of a cost


@dataclass(frozen=True)
class Proposal:
    """New widths for some groups, with what the whole network then uses, and whether that meets every target."""

    widths: dict[str, int]
    resources: dict[str, float]
    meets: bool

    @property
    def name(self) -> str:
        """The group, or for a proposal of several the first and how many more."""
        first, *more = self.widths
        return f"{first} and {len(more)} more" if more else first


def least_widths(widths: Mapping[str, int], grids: Mapping[str, Grid]) -> dict[str, int]:
    """Every group at the least width it may have."""
    return {name: min(width, grids[name].least) if name in grids else width for name, width in widths.items()}


def propose(
    resources: Sequence[Resource],
    widths: Mapping[str, int],
    targets: Mapping[str, float],
    grids: Mapping[str, Grid],
) -> tuple[Proposal, ...]:
    """One proposal for each group that can still shrink: its largest allowed width that meets every target.

    A group that cannot meet them alone is proposed at its least width, with `meets` false.
    """
    names = [name for name in grids if len(grids[name].below(widths[name]))]
    if not names:
        return ()
    find = _bisect if all(getattr(resource, "monotone", False) for resource in resources) else _scan
    sizes, found, feasible = find(resources, widths, targets, [grids[name] for name in names])
    return tuple(
        Proposal(
            {name: int(sizes[i])},
            {resource: _number(column[i]) for resource, column in found.items()},
            bool(feasible[i]),
        )
        for i, name in enumerate(names)
    )


def bargains(
    resources: Sequence[Resource],
    widths: Mapping[str, int],
    targets: Mapping[str, float],
    limits: Mapping[str, float],
    grids: Mapping[str, Grid],
    lost: Mapping[str, np.ndarray],
    proposals: Sequence[Proposal],
) -> list[Proposal]:
    """The proposals of single groups, each at the width that loses least importance per resource saved.

    Latency grows in steps of the width. The largest width that meets a target lies somewhere within a step: where its
    group reaches the next step for little more, that is the better offer, though it saves up to `_MOST_SAVED` times
    as much. What is saved below a budget's limit counts for nothing. A monotone resource has no such widths.
    """
    if all(getattr(resource, "monotone", False) for resource in resources):
        return list(proposals)
    here, better = evaluate(resources, widths), []
    for proposal in proposals:
        ((name, width),) = proposal.widths.items()
        sizes = np.array([w for w in grids[name].below(widths[name]) if w <= width][::-1])
        found = {r.name: one_at_a_time(r, widths, [name] * len(sizes))(sizes) for r in resources}
        saved = sum((here[r] - np.maximum(found[r], limit)) / here[r] for r, limit in limits.items() if here[r] > limit)
        offered = _each_meets(found, targets) & (saved > 0) & (saved <= _MOST_SAVED * saved[0])
        if not (proposal.meets and offered.any()):
            better.append(proposal)
            continue
        with np.errstate(divide="ignore"):
            price = np.where(offered, lost[name][sizes] / saved, np.inf)
        best = int(np.argmin(price))  # of equals the widest, which comes first
        better.append(Proposal({name: int(sizes[best])}, {r: _number(v[best]) for r, v in found.items()}, True))
    return better


def propose_joint(
    resources: Sequence[Resource],
    widths: Mapping[str, int],
    targets: Mapping[str, float],
    grids: Mapping[str, Grid],
    lost: Mapping[str, np.ndarray],
) -> Proposal | None:
    """One proposal that shrinks several groups by the least importance lost per resource saved: a greedy knapsack.

    `lost[group][w]` is what the group loses at width w (`fxprune.criteria.weight_norms.importance_lost`). A resource
    counts as saved only as far as it is above its target. At the end, steps that turn out not to be needed are given
    back, dearest first. None if no group can shrink.
    """
    work = dict(widths)
    names = [name for name in grids if len(grids[name].below(widths[name]))]
    here = evaluate(resources, work)
    while any(here[name] > target for name, target in targets.items()):
        open_ = [name for name in names if len(grids[name].below(work[name]))]
        if not open_:
            break
        smaller = {name: grids[name].below(work[name])[-1] for name in open_}
        saved = _saved(resources, work, smaller, here, targets)
        price = np.array([lost[name][smaller[name]] - lost[name][work[name]] for name in open_])
        if (saved > 0).any():
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.where(saved > 0, saved / np.maximum(price, 1e-300), -1.0)
            chosen = open_[int(np.argmax(value))]
        else:  # a peak that several groups hold up together: no single step lowers it
            chosen = open_[int(np.argmin(price))]
        work[chosen] = smaller[chosen]
        here = evaluate(resources, work)
    if work == dict(widths):
        return None
    work = _give_back(resources, dict(widths), work, targets, grids, lost)
    return _joint(resources, widths, work, targets)


def propose_uniform(
    resources: Sequence[Resource],
    widths: Mapping[str, int],
    targets: Mapping[str, float],
    grids: Mapping[str, Grid],
    original: Mapping[str, int],
) -> Proposal | None:
    """One proposal that leaves every group the same share of its original width (on its grid), as large as meets the
    targets. Residual blocks, of which no share can stay, stay."""
    grids = {name: grid for name, grid in grids.items() if grid.least}

    def at(share: float) -> dict[str, int]:
        work = dict(widths)
        for name, grid in grids.items():
            fitting = [w for w in grid.below(widths[name]) if w <= share * original[name] + 1e-9]
            if widths[name] > share * original[name] + 1e-9:
                work[name] = fitting[-1] if fitting else min(widths[name], grid.least)
        return work

    shares = sorted({w / original[name] for name, grid in grids.items() for w in grid.below(widths[name])})
    if not shares:
        return None
    low, high = 0, len(shares)  # shares[low] meets the targets if anything does, shares[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if _meets(evaluate(resources, at(shares[middle])), targets):
            low = middle
        else:
            high = middle
    return _joint(resources, widths, at(shares[low]), targets)


def evaluate(resources: Sequence[Resource], widths: Mapping[str, int]) -> dict[str, float]:
    """Each resource at these widths, as plain numbers."""
    return {r.name: _number(value_of(r, widths)) for r in resources}


Search = tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]


def _bisect(
    resources: Sequence[Resource], widths: Mapping[str, int], targets: Mapping[str, float], grids: Sequence[Grid]
) -> Search:
    """The chosen size of each group, what the network then uses, and whether it meets the targets; all groups at
    once."""
    least, step = np.array([grid.least for grid in grids]), np.array([grid.step for grid in grids])
    count = np.array([len(grid.below(widths[grid.group])) for grid in grids])
    alone = {r.name: one_at_a_time(r, widths, [grid.group for grid in grids]) for r in resources}

    def values(option: np.ndarray) -> dict[str, np.ndarray]:
        return {name: function(least + step * option) for name, function in alone.items()}

    best = values(low := np.zeros_like(count))
    feasible = _each_meets(best, targets)
    high = np.where(
        feasible, count, low + 1
    )  # low meets the targets, high does not: it is the width of now, or unknown
    while (open_ := high - low > 1).any():
        middle = np.where(open_, (low + high) // 2, low)
        found = values(middle)
        good = _each_meets(found, targets)
        best = {name: np.where(open_ & good, found[name], best[name]) for name in best}
        low, high = np.where(open_ & good, middle, low), np.where(open_ & ~good, middle, high)
    return least + step * low, best, feasible


def _scan(
    resources: Sequence[Resource], widths: Mapping[str, int], targets: Mapping[str, float], grids: Sequence[Grid]
) -> Search:
    """As `_bisect`, by a look at every width of every group."""
    options = [np.array(grid.below(widths[grid.group])) for grid in grids]
    names = [grid.group for grid, sizes in zip(grids, options, strict=True) for _ in sizes]
    sizes = np.concatenate(options)
    found = {r.name: one_at_a_time(r, widths, names)(sizes) for r in resources}
    good = _each_meets(found, targets)
    ends = np.cumsum([len(own) for own in options])
    chosen = []
    for own, end in zip(options, ends, strict=True):
        start = end - len(own)
        meeting = np.flatnonzero(good[start:end])
        chosen.append(start + (meeting[-1] if len(meeting) else 0))
    return sizes[chosen], {name: column[chosen] for name, column in found.items()}, good[chosen]


def _each_meets(found: Mapping[str, np.ndarray], targets: Mapping[str, float]) -> np.ndarray:
    met: np.ndarray = np.logical_and.reduce([found[name] <= target for name, target in targets.items()])
    return met


def _saved(
    resources: Sequence[Resource],
    work: Mapping[str, int],
    smaller: Mapping[str, int],
    here: Mapping[str, float],
    targets: Mapping[str, float],
) -> np.ndarray:
    """For each group, one step down: the share of what is still above the targets that it saves."""
    names, sizes = list(smaller), np.array(list(smaller.values()))
    total = np.zeros(len(smaller))
    for resource in resources:
        excess = here[resource.name] - targets.get(resource.name, math.inf)
        if excess > 0:
            left = one_at_a_time(resource, work, names)(sizes)
            total += np.minimum(here[resource.name] - left, excess) / excess
    return total


def _give_back(
    resources: Sequence[Resource],
    before: dict[str, int],
    work: dict[str, int],
    targets: Mapping[str, float],
    grids: Mapping[str, Grid],
    lost: Mapping[str, np.ndarray],
) -> dict[str, int]:
    if not _meets(evaluate(resources, work), targets):
        return work
    taken = [name for name in work if work[name] != before[name]]
    gain = {name: lost[name][work[name]] for name in taken}
    for name in sorted(taken, key=lambda name: -gain[name]):
        for width in [w for w in (*grids[name].below(before[name]), before[name]) if w > work[name]]:
            trial = {**work, name: width}
            if not _meets(evaluate(resources, trial), targets):
                break
            work = trial
    return work


def _joint(
    resources: Sequence[Resource], widths: Mapping[str, int], work: Mapping[str, int], targets: Mapping[str, float]
) -> Proposal | None:
    changed = {name: width for name, width in work.items() if width != widths[name]}
    found = evaluate(resources, work)
    return Proposal(changed, found, _meets(found, targets)) if changed else None


def _meets(found: Mapping[str, float], targets: Mapping[str, float]) -> bool:
    return all(found[name] <= target for name, target in targets.items())


def _number(value: float | np.ndarray) -> float:
    value = np.asarray(value).item()
    return int(value) if isinstance(value, int) else float(value)
