"""A folder keeps the search of one computation: another number, function or constant is another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import netadapt
from fxprune.errors import JournalError
from passes import capture

INPUT = torch.linspace(-2, 2, 16).reshape(2, 8)


class Net(nn.Module):
    """Two layers and what lies between them. seen: how often it ran, which is nothing of its computation."""

    def __init__(self, between: Callable[[Tensor], Tensor], scale: object = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between, self.scale = nn.Linear(8, 12), nn.Linear(12, 4), between, scale
        self.seen, self.kept = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.kept = x
        return self.last(self.between(self.first(x)) * self.scale)


def searched(network: nn.Module, workdir: Path) -> Any:
    return netadapt(
        network, 0.5, example_inputs=INPUT, calibration=[INPUT], workdir=workdir, progress=False,
        config={"netadapt_min_feature_size": 1, "sweeps": 0},
    )  # fmt: skip


CHANGES: dict[str, tuple[nn.Module, nn.Module]] = {
    "a slope": (Net(nn.LeakyReLU(0.1)), Net(nn.LeakyReLU(0.9))),
    "an epsilon": (Net(nn.LayerNorm(12, eps=1e-5)), Net(nn.LayerNorm(12, eps=0.1))),
    "a text": (Net(nn.GELU()), Net(nn.GELU("tanh"))),
    "a function": (Net(torch.relu), Net(torch.tanh)),
    "a number": (Net(torch.relu, 1.0), Net(torch.relu, 2.0)),
    "a plain tensor": (Net(torch.relu, torch.ones(1)), Net(torch.relu, torch.full((1,), 2.0))),
    "a constant": (
        Net(lambda h: h * torch.tensor([1.0, 2.0])[0]), Net(lambda h: h * torch.tensor([3.0, 2.0])[0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_another_computation_is_another_run(change: str, in_graph: bool, tmp_path: Path) -> None:
    before, after = CHANGES[change]
    if in_graph:
        before, after = (capture(network.eval(), INPUT) for network in (before, after))
    first = searched(before, tmp_path)
    with pytest.raises(JournalError, match="what the model computes|weights"):  # a capture registers plain tensors
        searched(after, tmp_path)
    assert searched(before, tmp_path).certificate == first.certificate


def test_what_a_program_keeps_of_its_calls_is_no_part_of_it(tmp_path: Path) -> None:
    first = searched(Net(nn.LeakyReLU(0.1)), tmp_path)
    used = Net(nn.LeakyReLU(0.1))
    used(INPUT)
    assert used.seen == 1 and searched(used, tmp_path).widths == first.widths
