"""Calls with sizes in them, run otherwise than by the module's forward: by another of its methods, or by a tracer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from passes import apply_plan, couple


class Features(nn.Module):
    """A method that a user may call alone, with another inside; their chunk is into halves that are pruned apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 5)

    def halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.first(x).chunk(2, 1)

    def forward_features(self, x: Tensor, twice: bool = True) -> Tensor:
        a, b = self.halves(x)
        c, d = self.halves(-x) if twice else (b, a)
        return torch.cat((a.relu() + c, b.tanh() + d), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forward_features(x))


class OtherName(Features):
    def forward_features(this, x: Tensor) -> Tensor:
        a, b = this.first(x).chunk(2, 1)
        return torch.cat((a.relu(), b.tanh()), 1)


@pytest.mark.parametrize("kind", [Features, OtherName])
@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_method_called_by_itself(kind: type[Features], copied) -> None:
    net, x = kind().eval(), torch.randn(3, 4)
    coupling = couple(net, x)
    cut = copied(apply_plan(net, coupling.plan({"first": (0, 2, 3, 5), "first#2": range(6)})))
    assert cut.first.out_features == 10  # 4 and 6: a chunk alone would give 5 and 5
    torch.testing.assert_close(cut.last(cut.forward_features(x)), cut(x), rtol=0, atol=0)
    if kind is Features:  # the other's forward runs no such method
        assert [half.shape[1] for half in cut.halves(x)] == [4, 6]


class OtherShape(nn.Module):
    """A view into the shape of another tensor, of as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        n, channels, height, width = y.shape
        return self.last(self.second(y).flatten(2).relu().view(n, channels, height, width))


def test_traced_with_sizes_that_are_tensors() -> None:
    net, x = OtherShape().eval(), torch.randn(2, 3, 6, 7)
    coupling = couple(net, x)
    cut = apply_plan(net, coupling.plan({"first": range(3), "second": (1, 2, 4, 6, 7)}))
    traced, other = torch.jit.trace(cut, x), torch.randn(4, 3, 5, 9)
    torch.testing.assert_close(traced(other), cut(other))
