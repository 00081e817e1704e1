"""Groups that get one width: in every strategy, with any units, held back together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Budget, NetAdaptConfig, netadapt
from fxprune.errors import ConfigError

EXAMPLE = torch.randn(2, 5, 16)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), *(Block() for _ in range(3)), nn.Linear(16, 4))


@pytest.mark.parametrize("strategy", ["netadapt", "uniform", "knapsack"])
@pytest.mark.parametrize("same", ["blocks", ["*.up"], [["1.up", "2.*"], "0"]])
def test_every_strategy_keeps_them_equal(strategy: str, same: object) -> None:
    net = _net()
    config = {"strategy": strategy, "same_width": same, "step": 2, "netadapt_min_feature_size": 2}
    result = netadapt(net, Budget("params", ratio=0.6), example_inputs=EXAMPLE, config=config, progress=False)
    assert result.met and result.achieved["params"] == sum(p.numel() for p in result.model.parameters())
    members = ["1.up", "2.up"] if isinstance(same, list) and len(same) == 2 else ["1.up", "2.up", "3.up"]
    assert len({result.widths[name] for name in members}) == 1
    assert result.certificate.max_error < 1e-9


def test_with_data_too() -> None:
    config = {"same_width": "blocks", "step": 2, "netadapt_min_feature_size": 2, "refine": 0, "sweeps": 0}
    result = netadapt(
        _net(), Budget("params", ratio=0.6), example_inputs=EXAMPLE, config=config, progress=False,
        calibration=[torch.randn(20, 5, 16) for _ in range(4)],
    )  # fmt: skip
    assert result.met and len({result.widths[f"{block}.up"] for block in (1, 2, 3)}) == 1


def test_one_that_is_held_back_holds_all() -> None:
    config = {"same_width": "blocks", "exclude": ["2.up"], "step": 2, "netadapt_min_feature_size": 2}
    result = netadapt(_net(), 0.8, example_inputs=EXAMPLE, config=config, progress=False)
    assert [result.widths[f"{block}.up"] for block in (1, 2, 3)] == [24, 24, 24]


@pytest.mark.parametrize(
    ("same", "words"),
    [
        (["4.up"], "no group is called '4.up'"),
        (["*"], "names groups of 16, 24 units"),
        (["1.*", "*.up"], "group 1.up is named by '1.*' and by '*.up'"),
    ],
)
def test_sets_that_cannot_be(same: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        netadapt(_net(), 0.8, example_inputs=EXAMPLE, config=NetAdaptConfig(same_width=tuple(same)), progress=False)
