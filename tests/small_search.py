"""A search of a few seconds, which many tests run: network, batches, functions, configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune import FineTune, NetAdaptConfig, NetAdaptResult, netadapt

EXAMPLE = torch.randn(2, 3, 8, 8)
FAST = NetAdaptConfig(
    netadapt_min_feature_size=2, netadapt_max_iter=2, budget_reduce_rate_init=0.15, budget_reduce_rate_decay=1.0,
    sweeps=0, refine=1,
)  # fmt: skip


class Net(nn.Module):
    """Two branches added, a third after them; widths pairwise different."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.branch = nn.Sequential(nn.Conv2d(12, 14, 3, padding=1), nn.ReLU(), nn.Conv2d(14, 12, 3, padding=1))
        self.tail = nn.Conv2d(12, 18, 3, stride=2)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.branch(x))
        return self.head(self.drop(torch.relu(self.tail(x)).mean((2, 3))))


def make() -> nn.Module:
    torch.manual_seed(3)
    return Net()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(6, 3, 8, 8, generator=generator), torch.randint(5, (6,), generator=generator)) for _ in range(3)
    ]


def negative_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return -float(sum(nn.functional.cross_entropy(model(x), y) for x, y in batches()))


def loss_of(model: nn.Module) -> float:
    """The same of a model in eval mode, whatever it is in."""
    model.eval()
    return negative_loss(model)


def halved(model: Any) -> None:
    """What an `evaluate` may leave behind: a model in half precision."""
    model.half()


def run(**changes: Any) -> NetAdaptResult:
    given: dict[str, Any] = {
        "example_inputs": EXAMPLE, "train": FineTune(batches(), lr=0.05), "evaluate": negative_loss, "config": FAST,
        "progress": False,
    }  # fmt: skip
    model, budget = changes.pop("model", None) or make(), changes.pop("budget", 0.5)
    return netadapt(model, budget, **{**given, **changes})


def history(result: NetAdaptResult) -> list[tuple]:
    return [
        (
            r.round,
            r.chosen_group,
            r.score,
            tuple(r.widths.items()),
            tuple((c.group, c.score, c.seed) for c in r.candidates),
        )
        for r in result.rounds
    ]
