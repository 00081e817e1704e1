"""The widths of least total error under all budgets: an integer programme over the groups' curves, by SciPy's HiGHS.

A resource is any function of the widths. Along one group, the others as they are, it is a table; the programme adds up
these tables, which is exact where no operator takes two shrinking groups, and is solved again around its own
solution where they do. What comes out is checked against the resource itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fxprune.errors import SearchError
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Resource, value_of
from fxprune.search.proposals import evaluate

_REACHES = (0.4, 0.3, 0.2, 0.15, 0.1, 0.1, 0.05)  # how far, as a share of a width, each later programme may go


def allocate(
    resources: Sequence[Resource], widths: Mapping[str, int], limits: Mapping[str, float], grids: Mapping[str, Grid],
    errors: Mapping[str, np.ndarray], within: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> dict[str, int] | None:  # fmt: skip
    """The widths of the groups that shrink, of least summed error within `limits`; None where none is.

    grids: the groups that may shrink.

    errors: for each group an array, entry w being the error at width w. within: for each block, a group of widths 1 and
    0, the groups that are not there at 0.
    """
    names = [name for name in grids if name in errors]
    choices = {name: [*grids[name].below(widths[name]), widths[name]] for name in names}
    everywhere = {name: (choices[name][0], choices[name][-1]) for name in names if choices[name]}

    def tried(current: Mapping[str, int], share: float, around: Mapping[str, tuple[int, int]]) -> _Found | None:
        found = _solve(
            resources, current, {n: share * limit for n, limit in limits.items()}, choices, errors, around, within
        )
        if found is None:
            return None
        used = evaluate(resources, {**widths, **found})
        over = max(used[name] / limit if limit else np.inf for name, limit in limits.items())
        return _Found(found, float(sum(errors[name][found[name]] for name in found)), over)

    best = _somewhere(tried, widths, choices, everywhere)
    if best is None:
        return None
    for reach in _REACHES:
        around = {n: _near(best.widths[n], everywhere[n], reach) for n in best.widths}
        share = 1.0
        for _ in range(3):
            found = tried({**widths, **best.widths}, share, around)
            if found is None:
                break
            if found.over <= 1.0:
                best = found if found.error < best.error else best
                break
            share *= 0.999 / found.over
    return {n: w for n, w in best.widths.items() if w < widths[n]}


@dataclass(frozen=True)
class _Found:
    """Widths with their summed error, and the most that they use of any limit (1: all of it)."""

    widths: dict[str, int]
    error: float
    over: float


_Tried = Callable[[Mapping[str, int], float, Mapping[str, tuple[int, int]]], "_Found | None"]


def _somewhere(
    tried: _Tried, widths: Mapping[str, int], choices: Mapping[str, list[int]],
    everywhere: Mapping[str, tuple[int, int]],
) -> _Found | None:  # fmt: skip
    """Widths within the limits, the better of those that programmes around several points give."""
    best: _Found | None = None
    points = [1.0, 0.75, 0.5, 0.25, 0.0]  # between the least (0) and the full widths (1)
    for point in points:
        current = dict(widths)
        for name, listed in choices.items():
            current[name] = listed[min(len(listed) - 1, round(point * (len(listed) - 1)))]
        low, high, share = 0.0, 2.0, 1.0
        for _ in range(5):
            found = tried(current, share, everywhere)
            if found is not None and found.over <= 1.0:
                best = found if best is None or found.error < best.error else best
                low = share
                if found.over > 0.995:
                    break
            elif found is not None:
                high = share
            else:
                low = share
            share = (low + high) / 2
    least = {name: listed[0] for name, listed in choices.items()}
    if best is None:
        found = tried({**widths, **least}, 1.0, {name: (w, w) for name, w in least.items()})
        best = found if found is not None and found.over <= 1.0 else None
    return best


def _near(width: int, bounds: tuple[int, int], reach: float) -> tuple[int, int]:
    step = max(1, round(reach * width))
    return max(bounds[0], width - step), min(bounds[1], width + step)


def _solve(
    resources: Sequence[Resource], current: Mapping[str, int], limits: Mapping[str, float],
    choices: Mapping[str, list[int]], errors: Mapping[str, np.ndarray], around: Mapping[str, tuple[int, int]],
    within: Mapping[str, tuple[str, ...]],
) -> dict[str, int] | None:  # fmt: skip
    """One width a group, chosen by the integer programme whose resources are linear around `current`.

    Where a block goes, the groups within it stand at their full widths, of which nothing is used: the block's entry
    takes back what theirs add.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    names = [n for n in choices if choices[n]]
    places = [(n, w) for n in names for w in choices[n] if around[n][0] <= w <= around[n][1]]
    objective = np.array([errors[n][w] for n, w in places], dtype=np.float64)
    finite = np.isfinite(objective)
    places = [p for p, ok in zip(places, finite, strict=True) if ok]
    objective = objective[finite]
    one = lil_matrix((len(names), len(places)))
    for column, (name, _) in enumerate(places):
        one[names.index(name), column] = 1
    constraints = [LinearConstraint(one.tocsr(), 1, 1)]
    at = {place: column for column, place in enumerate(places)}
    inside = {n: [i for i in within.get(n, ()) if (i, choices.get(i, [0])[-1]) in at] for n in names if (n, 0) in at}
    for name, inner in inside.items():
        for other in inner:
            both = np.zeros(len(places))
            both[at[name, 0]] = 1
            both[[c for c, (n, w) in enumerate(places) if n == other and w < choices[other][-1]]] = 1
            constraints.append(LinearConstraint(both[None], -np.inf, 1))
    for resource in resources:
        base = float(value_of(resource, dict(current)))
        row = np.zeros(len(places))
        for name in names:
            columns = [c for c, (n, _) in enumerate(places) if n == name]
            if columns:
                tried = np.array([places[c][1] for c in columns])
                row[columns] = value_of(resource, {**current, name: tried}, tried.shape) - base
        if resource.name not in limits:
            continue
        for name, inner in inside.items():
            row[at[name, 0]] -= sum(row[at[other, choices[other][-1]]] for other in inner)
        room = limits[resource.name] - base
        size = max(abs(base), 1.0)
        constraints.append(LinearConstraint(row[None] / size, -np.inf, room / size))
    scale = objective.max() if len(objective) and objective.max() > 0 else 1.0
    # HiGHS 1.12 (SciPy 1.17) prints a line of its own to C's stdout now and then, and no option stops it
    # (ERGO-Code/HiGHS#2783); redirecting the file descriptor would take the output of all other threads away.
    found = milp(
        objective / scale, constraints=constraints, integrality=np.ones(len(places)), bounds=Bounds(0, 1),
        options={"time_limit": 30.0, "mip_rel_gap": 1e-4, "presolve": False},
    )  # fmt: skip
    if found.x is None:
        if found.status not in (1, 2):
            raise SearchError(f"allocate: the integer programme failed: {found.message}")
        return None
    return {name: width for (name, width), x in zip(places, found.x, strict=True) if x > 0.5}
