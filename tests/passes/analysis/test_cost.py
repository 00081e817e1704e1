"""Costs: the polynomial of every resource equals counting the rebuilt network, for every vector of widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import flops_of, params_of
from tiny import TABLE
from torch import Tensor, nn

from passes import Cost, Coupling, PlanError, PruneChannels, capture, cost, couple


class Grouped(nn.Module):
    """A grouped convolution (g i -> g o), a dense one and a flatten: products of up to three widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, groups=2)
        self.norm, self.fc = nn.BatchNorm2d(12), nn.Linear(12 * 36, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        return self.head(self.fc(x.flatten(1)))


class Squared(nn.Module):
    """A width that meets itself: 8 x 8 for the residual convolution, and its square in the Gram matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gram = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = (x + self.b(x)).flatten(2)
        return self.gram((x @ x.mT).flatten(1))


INPUTS = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def analysed(make: Callable[[], nn.Module]) -> tuple[torch.fx.GraphModule, Coupling, Cost]:
    gm = capture(make().double().eval(), INPUTS)
    coupling = couple(gm, INPUTS)
    return gm, coupling, cost(coupling)


@pytest.mark.parametrize("make", [Grouped, Squared])
def test_every_vector_of_widths_agrees_with_the_recount(make: Callable[[], nn.Module]) -> None:
    gm, coupling, costs = analysed(make)
    choices = [sorted({1, 2, size // 2, size}) for size in coupling.widths.values()]
    for sizes in itertools.product(*choices):
        widths = dict(zip(coupling.widths, sizes, strict=True))
        pruned = PruneChannels(coupling.plan({g: range(n) for g, n in widths.items()}))(gm).graph_module
        assert costs.flops(widths) == flops_of(pruned, INPUTS) == 2 * costs.macs(widths)
        assert costs.params(widths) == params_of(pruned)


def test_hand_counted() -> None:
    _, coupling, costs = analysed(Grouped)
    assert coupling.widths == {"a": 2, "a#2": 4, "b": 6, "fc": 7}
    g, i, o, h = 2, 3, 5, 4
    widths = {"a": g, "a#2": i, "b": o, "fc": h}
    macs = 2 * (64 * 3 * 9 * g * i + 36 * 9 * g * i * o + 36 * g * o * h + 5 * h)
    assert costs.macs(widths) == macs
    params = 28 * g * i + (9 * i + 1) * g * o + 2 * g * o + (36 * g * o + 1) * h + (h + 1) * 5
    assert costs.params(widths) == params


def test_scalars_give_python_integers() -> None:
    _, _, costs = analysed(Grouped)
    for value in (
        costs.macs(),
        costs.flops({"fc": 3}),
        costs.params(),
        costs.memory(),
        costs.macs({"fc": np.int64(3)}),
    ):
        assert type(value) is int


def test_arrays_are_answered_at_once() -> None:
    """All given arrays broadcast together, and each entry is what a scalar call says."""
    _, _, costs = analysed(Grouped)
    rows, columns = np.arange(1, 7)[:, None], np.arange(1, 8)[None]
    for name in ("macs", "flops", "params", "memory"):
        ask = costs.resource(name)
        table = ask({"b": rows, "fc": columns, "a": 1})
        assert table.shape == (6, 7)
        for (i, j), value in np.ndenumerate(table):
            assert value == ask({"b": int(rows[i, 0]), "fc": int(columns[0, j]), "a": 1})


def test_along_is_the_polynomial_in_one_width() -> None:
    _, coupling, costs = analysed(Squared)
    for name in ("macs", "flops", "params"):
        for width in (3, 8):
            coefficients = costs.along(name, {"a": width})["a"]
            for other in range(1, 9):
                assert sum(c * other**power for power, c in enumerate(coefficients.tolist())) == costs.resource(name)(
                    {"a": other}
                )
    assert set(costs.along("macs")) == set(coupling.widths)


def test_along_holds_the_other_groups_where_they_are_put() -> None:
    _, coupling, costs = analysed(Grouped)
    at = {"a": 1, "a#2": 3, "b": 4, "fc": 5}
    for group, coefficients in costs.along("params", at).items():
        for width in range(1, coupling.widths[group] + 1):
            assert np.polyval(coefficients[::-1], width) == costs.params({**at, group: width})


def test_costs_never_fall_when_a_width_grows() -> None:
    """What the planner's bisection relies on."""
    _, coupling, costs = analysed(Grouped)
    for group, size in coupling.widths.items():
        for name in ("macs", "params", "memory"):
            assert (np.diff(costs.resource(name)({group: np.arange(1, size + 1)})) >= 0).all()


def test_a_pruned_network_has_the_costs_of_its_own_coupling() -> None:
    gm, coupling, costs = analysed(Grouped)
    plan = coupling.plan({"b": (0, 2, 5), "a#2": (1, 3)})
    here = cost(coupling.after(plan))
    assert (here.macs(), here.params()) == (costs.macs(plan.widths), costs.params(plan.widths))
    fresh = cost(couple(PruneChannels(plan)(gm).graph_module, INPUTS))
    assert (fresh.macs(), fresh.params(), fresh.memory()) == (here.macs(), here.params(), here.memory())


def test_the_batch_counts() -> None:
    gm = capture(Grouped().eval(), INPUTS.float())
    one, three = (cost(couple(gm, INPUTS[:1].float().expand(n, -1, -1, -1))) for n in (1, 3))
    assert three.macs() == 3 * one.macs() and three.params() == one.params()


def test_nothing_to_prune_still_has_a_cost() -> None:
    gm, coupling, costs = analysed(TABLE["NothingToPrune"].make)
    assert coupling.groups == () and costs.flops() == flops_of(gm, INPUTS) and costs.params({}) == params_of(gm)


def test_what_is_refused() -> None:
    _, _, costs = analysed(Grouped)
    with pytest.raises(PlanError, match="no group is called 'fcc'; did you mean 'fc'"):
        costs.macs({"fcc": 3})
    with pytest.raises(PlanError, match="got 3.5; expected integers in 0..7"):
        costs.macs({"fc": 3.5})
    with pytest.raises(
        PlanError, match="no resource is called 'joules'; there are flops, macs, params, weights, memory"
    ):
        costs.resource("joules")
    assert costs.resource("weights")() == costs.params()


def test_large_counts_do_not_overflow() -> None:
    """A hundred thousand images: more than 2^31 MACs, exact."""
    gm = capture(nn.Sequential(nn.Conv2d(64, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 64, 3)).eval())
    costs = cost(couple(gm, torch.empty(100_000, 64, 32, 32, device="meta")))
    assert costs.macs() == 100_000 * 9 * 64 * 256 * (32 * 32 + 30 * 30)
