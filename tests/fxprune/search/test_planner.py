"""Proposals: maximality, the grid of widths, several targets, joint proposals; against brute force."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fxprune.criteria.weight_norms import importance_lost
from fxprune.problem.width_grids import Grid, make_grid
from fxprune.resources.models import Counted
from fxprune.search.proposals import bargains, least_widths, propose, propose_joint, propose_uniform

START = {"a": 20, "b": 32, "c": 12}


def _macs(widths: Any = None) -> Any:
    w = {**START, **(widths or {})}
    return 3 * w["a"] * 25 + w["a"] * w["b"] * 9 + w["b"] * w["b"] * 4 + w["b"] * w["c"] + 10 * w["c"]


def _params(widths: Any = None) -> Any:
    w = {**START, **(widths or {})}
    return 27 * w["a"] + w["a"] * w["b"] + w["b"] * w["c"] * 50


MACS, PARAMS = Counted("macs", "MACs", _macs), Counted("params", "parameters", _params)


def _grids(step: int, least: int | None = None) -> dict[str, Grid]:
    made = {name: make_grid(name, size, step=step, min_size=least or step) for name, size in START.items()}
    return {name: grid for name, grid in made.items() if grid}


def _brute(widths: dict[str, int], targets: dict[str, float], grid: Grid) -> int | None:
    found = [
        w
        for w in grid.below(widths[grid.group])
        if all({"macs": _macs, "params": _params}[n]({**widths, grid.group: w}) <= t for n, t in targets.items())
    ]
    return max(found, default=None)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.7, 0.4])
@pytest.mark.parametrize("several", [False, True])
def test_each_width_is_the_largest_that_meets_every_target(step: int, share: float, several: bool) -> None:
    targets = {"macs": share * _macs()} | ({"params": 0.95 * _params()} if several else {})
    resources, grids = (MACS, PARAMS) if several else (MACS,), _grids(step)
    proposals = propose(resources, START, targets, grids)
    assert [p.name for p in proposals] == list(grids)
    for proposal in proposals:
        grid = grids[proposal.name]
        best = _brute(START, targets, grid)
        assert proposal.meets == (best is not None)
        assert proposal.widths[proposal.name] == (best if best is not None else grid.least)
        assert proposal.resources["macs"] == _macs(proposal.widths)
        assert type(proposal.resources["macs"]) is int


def test_the_first_multiple_below_an_odd_width_counts() -> None:
    assert list(make_grid("a", 20, step=8, min_size=8).below(20)) == [8, 16]  # type: ignore[union-attr]
    (proposal, *_) = propose((MACS,), START, {"macs": _macs() - 1}, {"a": Grid("a", 8, 8)})
    assert proposal.widths == {"a": 16}


def test_grids_respect_the_least_width_and_the_largest_share() -> None:
    assert make_grid("a", 8, step=8, min_size=8) is None
    assert make_grid("a", 7, step=8, min_size=8) is None
    assert make_grid("a", 100, step=8, min_size=8, max_prune=0.3) == Grid("a", 8, 72)
    assert make_grid("a", 10, step=1, min_size=1, max_prune=0.3) == Grid("a", 1, 7)
    assert make_grid("a", 64, step=16, min_size=24) == Grid("a", 16, 32)
    assert make_grid("a", 12, step=1, min_size=1, max_prune=1.0) == Grid("a", 1, 1)
    assert make_grid("a", 12, step=1, min_size=1, max_prune=0.0) is None


def test_no_group_left_to_shrink() -> None:
    assert propose((MACS,), {**START, "a": 8}, {"macs": 1}, {"a": Grid("a", 8, 8)}) == ()
    assert least_widths(START, {"a": Grid("a", 8, 8)}) == {"a": 8, "b": 32, "c": 12}


def _lost() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: importance_lost(rng.random(size) + 0.1) for name, size in START.items()}


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_joint_meets_the_target_and_needs_every_step_it_takes(share: float) -> None:
    targets, grids = {"macs": share * _macs(), "params": 0.8 * _params()}, _grids(2)
    proposal = propose_joint((MACS, PARAMS), START, targets, grids, _lost())
    assert proposal is not None and proposal.meets
    for name, width in proposal.widths.items():
        bigger = next(w for w in (*grids[name].below(START[name]), START[name]) if w > width)
        trial = {**proposal.widths, name: bigger}
        assert _macs(trial) > targets["macs"] or _params(trial) > targets["params"]


def test_joint_is_near_the_best_knapsack() -> None:
    targets, grids, lost = {"macs": 0.6 * _macs()}, _grids(4), _lost()
    options = [[*grid.below(START[name]), START[name]] for name, grid in grids.items()]
    best = min(
        sum(lost[n][w] for n, w in zip(grids, widths, strict=True))
        for widths in itertools.product(*options)
        if _macs(dict(zip(grids, widths, strict=True))) <= targets["macs"]
    )
    proposal = propose_joint((MACS,), START, targets, grids, lost)
    assert proposal is not None
    assert sum(lost[n][w] for n, w in proposal.widths.items()) <= 1.25 * best


def test_joint_that_cannot_meet_says_so() -> None:
    proposal = propose_joint((MACS,), START, {"macs": 1}, _grids(4), _lost())
    assert proposal is not None and not proposal.meets
    assert proposal.widths == {"a": 4, "b": 4, "c": 4}


def test_joint_lowers_a_peak_that_no_single_group_lowers() -> None:
    peak = Counted("memory", "bytes", lambda w: np.maximum(np.maximum(w["a"] * 4, w["b"] * 4), 20))
    grids, lost = {n: Grid(n, 2, 2) for n in "ab"}, {n: importance_lost(np.ones(16)) for n in "ab"}
    proposal = propose_joint((peak,), {"a": 16, "b": 16}, {"memory": 40}, grids, lost)
    assert proposal is not None and proposal.meets and proposal.widths == {"a": 10, "b": 10}


def test_uniform_leaves_each_group_the_same_share() -> None:
    targets, grids = {"macs": 0.5 * _macs()}, _grids(1)
    proposal = propose_uniform((MACS,), START, targets, grids, START)
    assert proposal is not None and proposal.meets
    shares = [proposal.widths[name] / START[name] for name in START]
    assert max(shares) - min(shares) < 0.1
    assert all(_macs({**proposal.widths, name: w + 1}) > 0 for name, w in proposal.widths.items())
    assert propose_uniform((MACS,), {n: g.least for n, g in grids.items()}, targets, grids, START) is None


@dataclass(frozen=True)
class Stairs:
    """Time that climbs in stairs of 16 and is worse between them: not monotone."""

    name: str = "latency"
    unit: str = "ms"

    def value(self, widths: Any = None) -> Any:
        w = {name: np.asarray(size) for name, size in {**START, **(widths or {})}.items()}
        return sum((np.ceil(w[n] / 16) * 16 + np.where(w[n] % 16 == 8, 9.5, 0)) * k for n, k in (("a", 3), ("b", 2)))


@pytest.mark.parametrize("share", [0.99, 0.95, 0.9, 0.8, 0.7])
def test_a_resource_that_is_not_monotone_is_looked_at_everywhere(share: float) -> None:
    stairs, grids = Stairs(), {"a": Grid("a", 1, 1), "b": Grid("b", 4, 4)}
    targets = {"latency": share * float(stairs.value()), "macs": 0.999 * _macs()}
    proposals = propose((stairs, MACS), START, targets, grids)
    for proposal in proposals:
        met = [
            w
            for w in grids[proposal.name].below(START[proposal.name])
            if stairs.value({proposal.name: w}) <= targets["latency"] and _macs({proposal.name: w}) <= targets["macs"]
        ]
        assert proposal.meets == bool(met)
        assert proposal.widths[proposal.name] == (max(met) if met else grids[proposal.name].least)
        assert proposal.resources["latency"] == stairs.value(proposal.widths)


@dataclass(frozen=True)
class Tiles:
    """Time of each unit, and of each tile of 32 that is begun."""

    name: str = "latency"
    unit: str = "ms"

    def value(self, widths: Any = None) -> Any:
        return sum(np.asarray(w) + 12.0 * np.ceil(np.asarray(w) / 32) for w in (widths or {}).values())


@pytest.mark.parametrize("limit", [0.0, 110.0])
@pytest.mark.parametrize("widths", [{"a": 48, "b": 64}, {"a": 96, "b": 32}, {"a": 40, "b": 72}])
def test_a_bargain_loses_least_for_what_it_saves(widths: dict[str, int], limit: float) -> None:
    tiles, grids = Tiles(), {name: Grid(name, 8, 8) for name in "ab"}
    lost = {name: importance_lost(np.ones(size)) for name, size in widths.items()}
    here = tiles.value(widths)
    targets = {"latency": here - 5.0}
    plain = propose((tiles,), widths, targets, grids)
    found = bargains((tiles,), widths, targets, {"latency": limit}, grids, lost, plain)
    for (name,), before, after in zip("ab", plain, found, strict=True):
        worth = {w: here - max(tiles.value({**widths, name: w}), limit) for w in range(8, before.widths[name] + 1, 8)}
        price = {w: lost[name][w] / worth[w] for w in worth if worth[w] <= 4 * worth[before.widths[name]]}
        assert after.widths == {name: min(price, key=lambda w: (price[w], -w))}
        assert after.meets and after.resources["latency"] == tiles.value({**widths, **after.widths})


def test_a_bargain_goes_down_to_the_next_tile_but_not_for_what_nobody_asked() -> None:
    tiles, grids, widths = Tiles(), {"b": Grid("b", 8, 8)}, {"b": 48}
    lost, targets = {"b": importance_lost(np.ones(48))}, {"latency": 67.0}
    plain = propose((tiles,), widths, targets, grids)
    assert plain[0].widths == {"b": 40}
    assert bargains((tiles,), widths, targets, {"latency": 0.0}, grids, lost, plain)[0].widths == {"b": 32}
    assert bargains((tiles,), widths, targets, {"latency": 64.0}, grids, lost, plain)[0].widths == {"b": 40}


def test_without_stairs_the_largest_width_is_the_bargain() -> None:
    grids, targets = _grids(4), {"macs": 0.9 * _macs()}
    plain = propose((MACS,), START, targets, grids)
    assert bargains((MACS,), START, targets, {"macs": 0}, grids, _lost(), plain) == list(plain)
