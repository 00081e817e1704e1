"""Units chosen apart in each outer block: heads and convolution groups that keep positions of their own."""

import numpy as np
import pytest
import torch
from torch import nn

from passes import Plan, PlanError, PruneChannels, capture, couple, verify


class Grouped(nn.Module):
    """A grouped convolution whose outputs go through batch norm into a plain one."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 32, 3, groups=4, padding=1)
        self.bn = nn.BatchNorm2d(32)
        self.c = nn.Conv2d(32, 6, 1)

    def forward(self, x):
        return self.c(self.bn(self.b(self.a(x))).relu())


class Attention(nn.Module):
    """Self attention of four heads inside a residual connection."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


NETWORKS = {
    "grouped": (Grouped, (2, 3, 8, 8), {"b": 4}),
    "heads": (Attention, (2, 7, 5), {"attention#2": 4, "attention#3": 4}),
}


def uneven(coupling, rng):
    """The coupling with random orders in every group that has blocks, and a plan that keeps about two thirds."""
    orders = {
        g.name: np.stack([rng.permutation(g.size) for _ in range(g.blocks)]) for g in coupling.groups if g.blocks > 1
    }
    formed = coupling.formed(orders)
    keep = {
        g.name: sorted(rng.choice(g.size, max(1, g.size * 2 // 3), replace=False).tolist()) for g in coupling.groups
    }
    return formed, formed.plan(keep)


@pytest.fixture(params=NETWORKS)
def network(request):
    make, shape, blocks = NETWORKS[request.param]
    torch.manual_seed(0)
    gm = capture(make().double().eval())
    x = torch.randn(shape, dtype=torch.float64)
    return gm, x, couple(gm, x), blocks


def test_where_the_network_allows_it(network):
    _, _, coupling, blocks = network
    assert {g.name: g.blocks for g in coupling.groups if g.blocks > 1} == blocks


def test_inputs_of_a_grouped_convolution_are_tied_across_groups():
    # the weight of a grouped convolution has its inputs in a dimension of their own, one for all groups
    coupling = couple(capture(Grouped()), torch.randn(2, 3, 8, 8))
    assert coupling.group("a#2").blocks == 1


def test_pruned_equals_zeroed_slices(network):
    gm, x, coupling, _ = network
    rng = np.random.default_rng(0)
    formed, plan = uneven(coupling, rng)
    assert any(len({tuple(sorted(row[:2])) for row in rows}) > 1 for rows in plan.orders.values()), "blocks differ"
    pruned = PruneChannels(plan)(gm).graph_module
    state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    for group in formed.groups:
        gone = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
        for item in group.slices:
            state[item.tensor].index_fill_(item.dim, torch.from_numpy(item.index[gone].ravel()), 0)
    expected = torch.func.functional_call(gm, state, (x,))
    torch.testing.assert_close(pruned(x), expected, rtol=1e-9, atol=1e-12)
    assert verify(gm, pruned, plan, x).max_error < 1e-9


def test_chains_and_json(network):
    gm, x, coupling, _ = network
    rng = np.random.default_rng(1)
    _, first = uneven(coupling, rng)
    once = PruneChannels(first)(gm).graph_module
    _, second = uneven(coupling.after(first), rng)
    twice = PruneChannels(second)(once).graph_module
    total = first.then(second)
    assert Plan.from_json(total.to_json()) == total
    direct = PruneChannels(total)(gm).graph_module
    for name, tensor in twice.state_dict().items():
        assert torch.equal(tensor, direct.state_dict()[name]), name
    assert verify(gm, twice, total, x).max_error < 1e-9


def test_orders_are_checked(network):
    _, _, coupling, blocks = network
    name, count = next(iter(blocks.items()))
    size = coupling.group(name).size
    rows = np.tile(np.arange(size), (count, 1))
    with pytest.raises(PlanError, match="expected"):
        coupling.formed({name: rows[:-1]})
    with pytest.raises(PlanError, match="permutation"):
        coupling.formed({name: np.zeros_like(rows)})
    with pytest.raises(PlanError, match="formed already"):
        coupling.formed({name: rows}).formed({name: rows})
    plain = next(g.name for g in coupling.groups if g.blocks == 1)
    with pytest.raises(PlanError, match="cannot be chosen apart"):
        coupling.formed({plain: rows})
