"""Networks that write into their inputs: the user's batches stay as they are, and every pass reads the same data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import Accuracy, FineTune, finetune, netadapt
from passes import couple
from passes.statistics import observe

Batches = list[tuple[Tensor, Tensor]]


class Normalised(nn.Module):
    """Normalises its input in place, or a copy of it."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.in_place = nn.Linear(8, 12), nn.Linear(12, 3), in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.in_place else x.clone()
        return self.last(self.first(x.sub_(3).div_(2)).relu())


def made() -> Batches:
    inputs = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    return [(batch, torch.arange(6) % 3) for batch in inputs]


def pruned(network: nn.Module, batches: Batches) -> object:
    result = netadapt(network, 0.5, example_inputs=torch.ones(2, 8), calibration=batches, progress=False)
    return result.score, result.widths


USES: dict[str, Callable[[nn.Module, Batches], object]] = {
    "netadapt": pruned,
    "observe": lambda network, batches: observe(network, couple(network, torch.ones(2, 8)), batches).moments.keys(),
    "Accuracy": lambda network, batches: Accuracy(batches)(network),
    "FineTune": lambda network, batches: FineTune(batches, loss=F.cross_entropy)(network, 6),
    "finetune": lambda network, batches: (
        finetune(network, batches, epochs=2, teacher=Normalised(), distill=0.5, progress=False).losses
    ),
}


@pytest.mark.parametrize("use", USES)
def test_batches_are_not_written_into(use: str) -> None:
    batches = made()
    found = USES[use](Normalised(), batches)
    assert all(torch.equal(mine[0], other[0]) for mine, other in zip(batches, made(), strict=True))
    assert found == USES[use](Normalised(in_place=False), made())
