"""Widths of least error under budgets: equal to a search of all, where all can be searched."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.criteria.curves import curves, scaled
from fxprune.criteria.registry import rank
from fxprune.errors import ConfigError
from fxprune.problem.width_grids import Grid
from fxprune.registries import list_criteria
from fxprune.resources.models import Counted
from fxprune.search.allocation import allocate
from passes import capture, couple, observe
from passes.statistics import Batch
from passes.statistics.elimination import eliminate


def table(name, function):
    return Counted(name, "units", function)


def exhaustive(resources, widths, limits, grids, errors):
    names = list(grids)
    best = None
    for choice in itertools.product(*[[*grids[n].below(widths[n]), widths[n]] for n in names]):
        tried = {**widths, **dict(zip(names, choice, strict=True))}
        if all(float(r.value(tried)) <= limits[r.name] for r in resources):
            error = sum(errors[n][w] for n, w in zip(names, choice, strict=True))
            if best is None or error < best - 1e-12:
                best = error
    return best


@pytest.mark.parametrize("seed", range(6))
def test_where_costs_add_up_it_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    widths = {"a": 8, "b": 6, "c": 9}
    price = {n: rng.uniform(1, 5) for n in widths}
    stairs = {n: np.cumsum(rng.integers(0, 4, w + 1)) for n, w in widths.items()}  # a latency: no straight line
    macs = table("macs", lambda w: sum(price[n] * w[n] for n in widths))
    latency = table("latency", lambda w: sum(stairs[n][np.asarray(w[n])] for n in widths))
    errors = {n: np.append(np.sort(rng.exponential(size=w))[::-1], 0.0) for n, w in widths.items()}
    grids = {n: Grid(n, 1, 1) for n in widths}
    limits = {"macs": 0.5 * float(macs.value(widths)), "latency": 0.7 * float(latency.value(widths))}
    found = allocate([macs, latency], widths, limits, grids, errors)
    best = exhaustive([macs, latency], widths, limits, grids, errors)
    if best is None:
        assert found is None
        return
    chosen = {**widths, **found}
    assert all(float(r.value(chosen)) <= limits[r.name] for r in (macs, latency))
    assert sum(errors[n][w] for n, w in chosen.items()) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_where_groups_meet_it_is_within_the_budget_and_near_the_best(seed):
    rng = np.random.default_rng(seed)
    widths = {"a": 12, "b": 10, "c": 11}
    macs = table("macs", lambda w: 3 * w["a"] + w["a"] * w["b"] + w["b"] * w["c"] + 2 * w["c"])
    errors = {n: np.append(np.sort(rng.exponential(size=w))[::-1].cumsum()[::-1], 0.0) for n, w in widths.items()}
    grids = {n: Grid(n, 1, 1) for n in widths}
    limits = {"macs": 0.5 * float(macs.value(widths))}
    found = allocate([macs], widths, limits, grids, errors)
    chosen = {**widths, **found}
    assert float(macs.value(chosen)) <= limits["macs"]
    best = exhaustive([macs], widths, limits, grids, errors)
    assert sum(errors[n][w] for n, w in chosen.items()) <= 1.1 * best


def test_steps_of_the_grid_are_kept_and_the_infeasible_is_none():
    macs = table("macs", lambda w: 1.0 * w["a"])
    errors = {"a": np.linspace(1, 0, 17)}
    assert allocate([macs], {"a": 16}, {"macs": 11.0}, {"a": Grid("a", 4, 4)}, errors) == {"a": 8}
    assert allocate([macs], {"a": 16}, {"macs": 3.0}, {"a": Grid("a", 4, 4)}, errors) is None


def test_elimination_takes_first_what_others_can_stand_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[5], net[0].bias[5] = 2 * net[0].weight[1], 2 * net[0].bias[1]  # its double
        net[2].weight[:, 3] = 0  # read by nobody
    gm = capture(net)
    x = torch.randn(500, 6)
    coupling = couple(gm, x[:2])
    found = eliminate(coupling.group("0"), coupling, observe(gm, coupling, [x]), dict(gm.named_parameters()))
    assert sorted(found.order) == list(range(8))
    assert set(found.order[:2]) in ({3, 5}, {3, 1})
    assert found.errors[8] == 0 and found.errors[6] < 1e-2 < found.errors[5]
    assert (np.diff(found.errors) <= 0).all()
    assert found.keep(6) == tuple(sorted(found.order[2:]))


def test_an_elimination_error_is_that_of_the_best_weights_for_what_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    gm = capture(net)
    x = torch.randn(400, 5).double()
    coupling = couple(gm, x[:2])
    found = eliminate(coupling.group("0"), coupling, observe(gm, coupling, [x]), dict(gm.named_parameters()), 1e-9)
    with torch.no_grad():
        hidden = torch.tanh(net[0](x[:320]))
        out = hidden @ net[2].weight.T
        kept = torch.cat([hidden[:, list(found.keep(3))], torch.ones(320, 1)], 1)
        rest = out - kept @ torch.linalg.lstsq(kept, out).solution
    assert found.errors[3] == pytest.approx(float(rest.square().sum() / (out - out.mean(0)).square().sum()), rel=1e-4)


def test_curves_pass_through_what_was_measured_and_never_rise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 5))
    gm = capture(net)
    x = torch.randn(60, 3, 8, 8)
    coupling = couple(gm, x[:2])
    made = curves(gm, coupling, observe(gm, coupling, [x[:40]]), [Batch((x[40:],))], tried=(0.5,))
    assert set(made) == {g.name for g in coupling.groups}
    for name, curve in made.items():
        assert curve.errors[-1] == 0 and (np.diff(curve.errors) <= 0).all(), name
        (width,) = curve.measured
        assert curve.errors[width] >= curve.measured[width] * (1 - 1e-9)
    assert scaled(np.array([4.0, 2.0, 0.0]), {}).tolist() == [4.0, 2.0, 0.0]


@pytest.mark.parametrize("name", list_criteria())
def test_every_criterion_ranks_every_group_and_a_unit_that_is_zero_goes_first(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    with torch.no_grad():
        net[1].weight[4] = net[1].bias[4] = 0
        net[0].weight[4] = net[0].bias[4] = 0
    gm = capture(net.eval())
    x = torch.randn(40, 3, 6, 6)
    coupling = couple(gm, x[:2])
    statistics = observe(gm, coupling, [x], gradients="sampled")
    for group in coupling.groups:
        ranking = rank(name, gm, group, statistics)
        assert ranking.scores.shape == (6,) and ranking.errors.shape == (7,)
        assert ranking.errors[-1] == 0 and (np.diff(ranking.errors) <= 0).all()
        if name not in ("random", "fpgm"):
            assert int(ranking.scores.argmin()) == 4
    if name in ("obs", "fisher", "taylor", "activation"):
        with pytest.raises(ConfigError, match="calibration"):
            rank(name, gm, coupling.groups[0])


@pytest.mark.parametrize("wide, widest", [(16, 8192), (16, 17)])
def test_wide_readers_are_ranked_without_their_whole_inverse(wide, widest, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 5)).eval()
    net[2].weight.data *= torch.linspace(0.1, 2, 12)[torch.randperm(12)][None, :, None, None]
    x = torch.randn(200, 3, 10, 10)
    coupling = couple(net, x[:1])
    statistics, weights = observe(net, coupling, [x]), dict(net.named_parameters())
    exact = eliminate(coupling.groups[0], coupling, statistics, weights)
    monkeypatch.setattr("passes.statistics.elimination._WIDE", wide)
    monkeypatch.setattr("passes.statistics.elimination._WIDEST", widest)
    found = eliminate(coupling.groups[0], coupling, statistics, weights)
    assert np.corrcoef(exact.ranks, found.ranks)[0, 1] > 0.8
    assert (found.errors[1:] >= exact.errors[1:] - 1e-9).all() and found.errors[0] == pytest.approx(1, abs=0.01)
