"""Parameters are there when an operator uses them, and their memory is given back afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passes.equality import streamed
from passes.equality.double import double
from passes.equality.streamed import Streamed
from passes.graph.module_copies import copy_module


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "SMALL", 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.tied = self.layers[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.layers, self.tied):
            x = torch.tanh(layer(x) + x[:, 1:] @ layer.weight[:, 1:].t() * layer.weight.view(-1)[0])
        return x


class Writing(nn.Module):
    """Counts in a parameter, by itself and through a view of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.other = (nn.Parameter(torch.zeros(4, 4), requires_grad=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        self.count.data[0].mul_(3)
        return x + self.count + (self.other @ self.other) * 0


def filled(network: nn.Module) -> list[str]:
    """Those with values: memory without pages reads as zeros."""
    large = [(name, p) for name, p in network.named_parameters() if p.numel() >= 8]
    return [name for name, p in large if p.untyped_storage().nbytes() and bool((p != 0).any())]


def made(network: nn.Module, room: int = 0, at_once: bool = False) -> tuple[nn.Module, Streamed]:
    mode = Streamed(lambda name, tensor, copied: copied(tensor), double, at_once, room)
    return copy_module(network, mode), mode


@pytest.mark.parametrize("room", [0, 300, 1 << 20])
def test_a_run_is_that_of_a_copy_in_double_precision(room: int) -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(3, 6, dtype=torch.float64)
    copy, mode = made(net, room)
    assert filled(copy) == []
    with torch.no_grad(), mode:
        got = copy(x)
    assert torch.equal(got, copy_module(net, lambda _, t: nn.Parameter(double(t)))(x))
    assert len(filled(copy)) == (4 if room == 1 << 20 else 0)


def test_what_a_run_writes_stays_for_its_copy_and_for_no_other() -> None:
    net = Writing()
    copy, mode = made(net)
    with torch.no_grad(), mode:
        first, second = (copy(torch.zeros(4, 4, dtype=torch.float64)) for _ in range(2))
    assert (first[0, 0], first[1, 0]) == (3, 1) and (second[0, 0], second[1, 0]) == (12, 2)
    assert net.count.sum() == 0
    fresh = copy_module(net, mode)
    with torch.no_grad(), mode:
        assert fresh(torch.zeros(4, 4, dtype=torch.float64))[1].tolist() == [1] * 4


def test_at_once_all_are_there_without_the_mode() -> None:
    torch.manual_seed(0)
    net = Net()
    copy, _ = made(net, at_once=True)
    for (name, ours), theirs in zip(copy.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs.double()), name


def test_gradients_pass_through_what_is_empty_in_between() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(3, 6, dtype=torch.float64)
    copy, mode = made(net)
    with mode:
        copy(x).sum().backward()
    whole = copy_module(net, lambda _, t: nn.Parameter(double(t)))
    whole(x).sum().backward()
    for ours, theirs in zip(copy.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
