"""Files are loaded into the network that they were written of: equal tensors do not tell two programs apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import export, load, netadapt
from fxprune.exporters import ExportError
from fxprune.io.sample import is_like, sample_of
from passes import capture, couple

INPUT = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, slope: float = 0.1, scale: float = 1.0, swapped: bool = False, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, stride, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.act, self.head = nn.LeakyReLU(slope), nn.Linear(8, 4)
        self.scale, self.swapped, self.calls = scale, swapped, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.act(self.a(x))
        for layer in (self.c, self.b) if self.swapped else (self.b, self.c):
            h = self.act(layer(h)) * self.scale
        return self.head(h.mean((2, 3)))


OTHERS = {
    "a slope": lambda: Net(slope=0.5),
    "a factor": lambda: Net(scale=2.0),
    "an order": lambda: Net(swapped=True),
    "a stride": lambda: Net(stride=2),
}  # fmt: skip


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_program_of_equal_tensors_is_refused(
    other: Callable[[], nn.Module], in_graph: bool, tmp_path: Path
) -> None:
    network: nn.Module = capture(Net().eval(), INPUT) if in_graph else Net()
    result = netadapt(network, 0.6, example_inputs=INPUT, progress=False)
    export(result.model, INPUT, tmp_path / "net.safetensors", plan=result.plan)
    fresh = Net()
    loaded = load(fresh, tmp_path / "net.safetensors")
    assert torch.equal(loaded.eval()(INPUT), result.model.eval()(INPUT)) and fresh.calls == 0
    with pytest.raises(ExportError, match="computes something else|made for another network|does not fit"):
        load(other(), tmp_path / "net.safetensors")


class Drawing(Net):
    """Draws a factor at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random() * torch.rand(())


class Counting(Net):
    """Gives something else at each call."""

    calls_of_all = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls_of_all += 1
        return super().forward(x) * Counting.calls_of_all


def test_programs_that_give_something_else_at_each_call() -> None:
    inputs = couple(Net(), INPUT).inputs
    drawn = sample_of(Drawing(), inputs)
    random.seed(1), torch.manual_seed(1)
    assert drawn is not None and is_like(drawn, Drawing(), inputs) and not is_like(drawn, Net(), inputs)
    assert sample_of(Counting(), inputs) is None
