"""The numbers of the paper's published code: AlexNet's widths, and the trace of the three-conv network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Budget, NetAdaptConfig, netadapt
from fxprune.problem.width_grids import Grid
from fxprune.resources.kinds import counted
from fxprune.search.proposals import propose
from passes import capture, cost, couple


class AlexNet(nn.Module):
    """The single-column network of Krizhevsky's "One weird trick" (2014), with so many classes."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU(),
            nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def mobilenet(classes: int) -> nn.Module:
    """The first MobileNet (2017): a convolution, then 13 pairs of a depthwise and a pointwise one."""
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    for before, width, stride in zip(widths, widths[1:], strides[1:], strict=False):
        layers += [
            nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU(),
        ]
        layers += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(1024, classes))


def three_convs() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(64, 10, 3, padding=1, bias=False),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alexnet() -> Any:
    with torch.device("meta"):
        model = AlexNet(10)
    example = torch.empty(1, 3, 224, 224, device="meta")
    return couple(capture(model.eval(), example), example)


def test_alexnet_macs(alexnet: Any) -> None:
    assert cost(alexnet).macs() == 710_133_440


def test_alexnet_one_block_at_a_time_to_below_0_975(alexnet: Any) -> None:
    resource = counted(cost(alexnet), "macs")
    grids = {name: Grid(name, 8, 8) for name in alexnet.widths}
    proposals = propose((resource,), alexnet.widths, {"macs": 0.975 * 710_133_440}, grids)
    assert [(p.widths[p.name], p.resources["macs"], p.meets) for p in proposals] == [
        (56, 673_355_240, True),
        (176, 682_126_016, True),
        (352, 688_328_384, True),
        (232, 686_770_880, True),
        (216, 688_660_160, True),
        (2760, 692_348_608, True),
        (8, 693_348_112, False),
    ]


def test_mobilenet_one_block_at_a_time_to_below_0_975() -> None:
    """MACs of all convolutions and the linear layer; a block is a pointwise convolution with the depthwise one after
    it."""
    with torch.device("meta"):
        model = mobilenet(10)
    example = torch.empty(1, 3, 224, 224, device="meta")
    coupling = couple(capture(model.eval(), example), example)
    resource = counted(cost(coupling), "macs")
    assert resource.value() == 567_726_592 and len(coupling.groups) == 14
    grids = {name: Grid(name, 8, 8) for name in coupling.widths}
    proposals = propose((resource,), coupling.widths, {"macs": 0.975 * 567_726_592}, grids)
    found = [(coupling.widths[p.name] - p.widths[p.name], p.resources["macs"]) for p in proposals]
    assert [found[block] for block in (0, 1, 5, 7, 9, 11, 13)] == [
        (16, 547_656_192), (24, 547_781_632), (48, 553_191_232), (72, 553_148_896), (72, 553_148_896),
        (96, 553_233_568), (288, 553_273_024),
    ]  # fmt: skip


@pytest.mark.parametrize("resource", ["params", "weights", "macs", "flops"])
@pytest.mark.parametrize("base", ["current", "initial"])
def test_three_convs(resource: str, base: str) -> None:
    """28501.2, then 27764.1, 26842.7 of the current value, or 730.8 less each round: the same widths are chosen."""
    scores = {(16, 32, 64): 95.0, (16, 32, 62): 80.0, (13, 32, 62): 85.0, (13, 30, 62): 90.0}

    def evaluate(model: nn.Module) -> float:
        widths = tuple(p.shape[0] for p in model.parameters())[:3]
        return scores.get(widths, 0.0)

    unit = {"params": 1, "weights": 1, "macs": 1024, "flops": 2048}[resource]
    config = NetAdaptConfig(
        netadapt_max_rounds=3, netadapt_min_feature_size=1, budget_reduce_rate_init=0.025, budget_reduce_rate_decay=1.0,
        budget_reduce_base=base,
    )  # fmt: skip
    result = netadapt(
        three_convs(), Budget(resource, ratio=0.8), example_inputs=torch.randn(1, 3, 32, 32), evaluate=evaluate,
        config=config, progress=False,
    )  # fmt: skip
    name = result.budgets[0].resource
    achieved = [result.start[name], *[r.achieved[name] for r in result.rounds]]
    assert achieved == [n * unit for n in (29232, 28476, 27531, 26181)]
    assert [tuple(r.widths.values()) for r in result.rounds] == [(16, 32, 62), (13, 32, 62), (13, 30, 62)]
    assert [r.score for r in result.rounds] == [80, 85, 90]
    assert not result.met and "netadapt_max_rounds=3" in result.stopped


def test_three_convs_stop_when_the_budget_is_met() -> None:
    config = NetAdaptConfig(netadapt_min_feature_size=1, budget_reduce_rate_init=0.025, budget_reduce_rate_decay=1.0)
    result = netadapt(
        three_convs(), Budget("params", ratio=0.9999), example_inputs=torch.randn(1, 3, 32, 32), config=config,
        progress=False,
    )  # fmt: skip
    assert len(result.rounds) == 1 and result.met
