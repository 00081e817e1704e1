"""Joint widths made better step by step: what a width costs beside the others as they are, measured and allocated anew.

The curves of the groups are measured one by one, with the rest of the network whole, and what several cost together is
only roughly their sum. Around the best joint widths each group is therefore made a little narrower and a little wider,
the programme is solved again within reach of these widths, and what it finds is taken if the network that it leaves is
nearer to the dense one; else the reach shrinks: a trust region method (Conn, Gould and Toint, 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Resource
from fxprune.search.allocation import allocate
from fxprune.workers.repair import JUDGING, ROUND_PASSES

SHARE = 0.25  # by which a width is changed to measure what that costs
REACH = 1.5  # how far the programme may go, in such shares
TRIES = 3  # reaches that are tried, each half of the one before
WORK = 1.5e13  # multiplications that the measurements may take, all together: some minutes of one core
PASSES = 3  # over the samples of one measurement: norms are estimated, and the network is judged before and after
LEAST, MOST = 64, 1024  # samples of one measurement
REFINED = 384  # samples that one measurement refines a network on
REFINED_WORK = 1.8e13  # multiplications of a sweep that refines: that of ResNet-20
REFINED_PASSES = ROUND_PASSES * REFINED + PASSES * JUDGING  # samples run through one network that is refined and judged
SETUP = 4e9  # multiplications that take as long as refinement needs to set up the layers of one group

Widths = Mapping[str, int]
Measure = Callable[[Sequence[Widths]], "Sequence[float | None]"]
"""The errors of the networks of some widths, on the same samples; None for one that cannot be measured."""

Compare = Callable[[dict[str, int]], "float | None"]
"""The error at widths that may be chosen, on all samples that judge."""


@dataclass(frozen=True)
class Effort:
    """How often the programme is solved anew, on how many samples each width is measured for it, and whether the
    network of that width is refined on them first."""

    sweeps: int
    samples: int
    refined: bool = False


def effort_for(groups: int, macs: float, most: int, refines: bool = False) -> Effort:
    """At most `most` sweeps over so many groups; fewer, or none, where they would take more than `WORK`.

    macs: multiplications for one sample. refines: networks can be refined. Near the best widths the divergence in
    closed form says little of the divergence once refined, so networks are refined where there is time for one sweep
    (a second one gains a tenth of what the first does).

    >>> effort_for(13, 4e7, 4), effort_for(30, 1.3e8, 4), effort_for(36, 4e9, 4)
    (Effort(sweeps=4, samples=1024, refined=False), Effort(sweeps=4, samples=157, refined=False), \
Effort(sweeps=0, samples=64, refined=False))
    >>> effort_for(13, 4e7, 4, refines=True), effort_for(30, 1.3e8, 4, refines=True)
    (Effort(sweeps=1, samples=384, refined=True), Effort(sweeps=4, samples=157, refined=False))
    """
    networks = 2 * groups + 1  # that a sweep measures
    one = macs * REFINED_PASSES + SETUP * groups
    if refines and most and networks * one <= REFINED_WORK:
        return Effort(1, REFINED, refined=True)
    possible = int(WORK / max(1.0, macs * PASSES * networks))  # samples, of all sweeps together
    sweeps = min(most, possible // LEAST)
    return Effort(sweeps, max(LEAST, min(MOST, possible // max(1, sweeps))))


def improve(
    resources: Sequence[Resource], whole: Widths, limits: Mapping[str, float], grids: Mapping[str, Grid],
    start: tuple[Widths, float], sweeps: int, measure: Measure, compare: Compare,
) -> None:  # fmt: skip
    """Look for widths within `limits` of less error than those of `start`; all that may be chosen goes to `compare`.

    whole: the greatest widths of all groups. grids: those that may be narrower. start: widths of all, and their error.
    """
    widths, error, share = dict(start[0]), start[1], SHARE
    compared = [widths]
    choices = {name: [*grid.below(whole[name]), whole[name]] for name, grid in grids.items()}
    for _ in range(sweeps):
        places = [(n, w) for n, listed in choices.items() for w in neighbours(listed, widths[n], share)]
        here, *found = measure([widths, *({**widths, name: width} for name, width in places)])
        if here is None:
            return
        points = {name: {widths[name]: here} for name in grids}
        for (name, width), value in zip(places, found, strict=True):
            if value is not None or width < widths[name]:
                points[name][width] = np.inf if value is None else value
        errors = {name: interpolated(known, whole[name]) for name, known in points.items()}
        now = sum(errors[name][widths[name]] for name in grids)
        for reach in (REACH * share / 2**i for i in range(TRIES)):
            tried = _within_reach(resources, widths, limits, grids, choices, errors, reach)
            if tried is None or tried in compared or sum(errors[n][tried[n]] for n in grids) >= now:
                continue
            compared.append(tried)
            value = compare(tried)
            if value is not None and value < error:
                widths, error = tried, value
                break
        else:
            share /= 2


def neighbours(choices: Sequence[int], width: int, share: float) -> list[int]:
    """The next narrower and wider choice that is `share` away, or the nearest one beyond `width`; ascending.

    >>> neighbours([2, 4, 6, 8, 10, 12, 14, 16], 8, 0.25), neighbours([2, 4, 6, 8], 8, 0.25), neighbours([1, 2], 1, 0.1)
    ([6, 10], [6], [2])
    """
    narrower, wider = [c for c in choices if c < width], [c for c in choices if c > width]
    return [
        min(side, key=lambda choice: abs(choice - aim))
        for side, aim in ((narrower, width / (1 + share)), (wider, width * (1 + share)))
        if side
    ]


def interpolated(points: Mapping[int, float], whole: int) -> np.ndarray:
    """The error at every width up to `whole`, by the measured ones, never rising with the width.

    Linear in the logarithm of the width between them, steeper below them, and constant above: what has not been
    measured promises nothing. From a width with an infinite error on, away from the finite ones, it is infinite.

    >>> interpolated({2: 3.0, 4: 1.0, 8: 2.0}, 8).round(2).tolist()
    [6.0, 4.5, 3.0, 2.42, 2.0, 2.0, 2.0, 2.0, 2.0]
    >>> interpolated({2: np.inf, 4: 1.0, 5: 0.5}, 5).round(2).tolist()
    [inf, inf, inf, 1.97, 1.0, 0.5]
    """
    known = sorted(width for width, error in points.items() if np.isfinite(error))
    values = np.maximum.accumulate(np.array([points[width] for width in known])[::-1])[::-1]
    widths = np.arange(whole + 1)
    at, places = np.log(np.maximum(widths, 0.5)), np.log(known)
    errors = np.interp(at, places, values)
    if len(known) > 1:
        slope = 1.5 * (values[1] - values[0]) / (places[1] - places[0])
        errors = np.where(at < places[0], values[0] + slope * (at - places[0]), errors)
    for width in points.keys() - set(known):
        errors = np.where(widths <= width if width < known[0] else widths >= width, np.inf, errors)
    return errors


def _within_reach(
    resources: Sequence[Resource], widths: Widths, limits: Mapping[str, float], grids: Mapping[str, Grid],
    choices: Mapping[str, Sequence[int]], errors: Mapping[str, np.ndarray], reach: float,
) -> dict[str, int] | None:  # fmt: skip
    """The widths of least error within the limits that are at most the share `reach` away; None where none are."""
    least, most = {}, {}
    for name, listed in choices.items():
        near = [c for c in listed if widths[name] / (1 + reach) <= c <= widths[name] * (1 + reach)] or listed[-1:]
        least[name], most[name] = near[0], near[-1]
    narrowed = {name: Grid(name, grid.step, least[name]) for name, grid in grids.items()}
    found = allocate(resources, {**widths, **most}, limits, narrowed, errors)
    return None if found is None else {**widths, **most, **found}
