"""`depth: true`: residual blocks among the proposals of a search."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import Budget, netadapt
from fxprune.criteria.blocks import block_importance_lost
from fxprune.errors import ConfigError
from fxprune.problem.blocks import groups_within
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Counted
from fxprune.search.allocation import allocate
from passes import cost, couple

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
DATA = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        with torch.no_grad():
            self.down.weight.mul_(scale)
            self.down.bias.mul_(scale)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def network():
    """Three blocks, of which the second adds next to nothing."""
    torch.manual_seed(0)
    blocks = [Block(1.0), Block(1e-3), Block(1.0)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def search(ratio=0.68, calibration=None, **config):
    settings = {"depth": True, "refine": 1, "sweeps": 1, **config}
    return netadapt(
        network(), Budget("macs", ratio=ratio), example_inputs=IMAGE, calibration=calibration, config=settings,
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["netadapt", "knapsack"])
def test_weights_alone_remove_the_block_that_adds_nothing(strategy):
    result = search(strategy=strategy, budget_reduce_rate_init=0.3)
    assert result.plan.removed_blocks == ("block:2.down",) == result.certificate.removed_blocks
    assert result.widths["block:2.down"] == 0 and result.original_widths["block:2.down"] == 1
    assert result.met and cost(result.coupling).macs(result.widths) == result.achieved["macs"]
    assert "block:2.down" in str(result)


@pytest.mark.parametrize("strategy", [pytest.param("netadapt", marks=pytest.mark.slow), "allocate"])
def test_data_remove_the_block_that_adds_nothing(strategy):
    how = {"calibration": DATA, "strategy": strategy, "budget_reduce_rate_init": 0.3, "refine": 0}
    result = search(**how)
    assert "block:2.down" in result.plan.removed_blocks and result.met
    plain = search(**how, depth=False)
    assert plain.plan.removed_blocks == () and result.score > plain.score


def test_blocks_stay_unless_asked_for_excluded_or_out_of_scope():
    assert search(depth=False).plan.removed_blocks == ()
    assert search(exclude=("2.up",)).plan.removed_blocks == ()
    with pytest.raises(ConfigError, match="depth"):
        search(depth="yes")
    result = netadapt(
        network(), Budget("macs", ratio=0.75), example_inputs=IMAGE, scope="1", config={"depth": True}, progress=False
    )
    assert result.plan.removed_blocks in ((), ("block:1.down",))


@pytest.mark.parametrize("calibration", [None, DATA])
def test_a_search_is_continued_to_the_same_network(tmp_path, calibration):
    def run(rounds, resume=None):
        config = {"depth": True, "refine": 0, "strategy": "netadapt", "netadapt_max_rounds": rounds}
        return netadapt(
            network(), Budget("macs", ratio=0.5), example_inputs=IMAGE, calibration=calibration, workdir=tmp_path,
            config=config, progress=False, resume=resume,
        )  # fmt: skip

    whole = run(4)
    again = run(4, resume=True)
    assert again.plan == whole.plan and again.widths == whole.widths
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_a_block_loses_its_share_of_the_stream():
    model = network()
    coupling = couple(model, IMAGE, depth=True)
    lost = [block_importance_lost(model, coupling, name, "l2_norm") for name in coupling.blocks]
    assert lost[1][0] < 0.01 * min(lost[0][0], lost[2][0]) and all(entry[1] == 0 for entry in lost)


def test_what_goes_with_a_block():
    assert groups_within(couple(network(), IMAGE, depth=True))["block:2.down"] == ("2.up",)


def test_the_programme_counts_a_block_with_its_groups_once():
    """Two blocks of one group each: the limit holds, and the cheapest error is found."""

    def value(widths=None):
        widths = {"a": 8, "b": 8, "block:a": 1, "block:b": 1, **(widths or {})}
        return np.asarray(widths["a"]) * widths["block:a"] * 10 + np.asarray(widths["b"]) * widths["block:b"] * 10

    widths = {"a": 8, "b": 8, "block:a": 1, "block:b": 1}
    grids = {name: Grid(name, 1, 1) for name in "ab"} | {f"block:{name}": Grid(f"block:{name}", 1, 0) for name in "ab"}
    steep = np.array([99.0, *np.arange(7, -1, -1.0)])
    errors = {"a": steep, "b": steep, "block:a": np.array([0.5, 0.0]), "block:b": np.array([50.0, 0.0])}
    within = {"block:a": ("a",), "block:b": ("b",)}
    found = allocate([Counted("macs", "MACs", value)], widths, {"macs": 80.0}, grids, errors, within)
    assert found == {"block:a": 0}


def milliseconds(gm, inputs):
    """A device that takes a millisecond for a million operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gm(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return counter.get_total_flops() / 1e6 + 1e-3


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_latency_budget_counts_the_operators_of_a_block(form):
    config = {"depth": True, "latency": {"measure": milliseconds, "device": "counting"}, "netadapt_max_rounds": 1}
    result = netadapt(
        network(), Budget("latency", ratio=0.68), example_inputs=IMAGE, form=form, config=config, progress=False
    )
    (model,) = result.problem.resources
    dense, less = model.predict_ms(), model.predict_ms({"block:2.down": 0})
    alone = cost(result.coupling).flops() - cost(result.coupling).flops({"block:2.down": 0})
    assert dense - less == pytest.approx(alone / 1e6, rel=0.05)
    assert len(model.by_unit({"block:2.down": 0})) == len(model.by_unit()) - 2
