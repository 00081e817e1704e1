"""Networks whose functions remember results: every run of an analysis computes them, and leaves none of its own."""

from __future__ import annotations

import functools

import torch
from module_law import proven
from torch import Tensor, nn

from passes import apply_plan, couple


def remembering(function):
    kept = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def call(*args):
        return kept(*args)

    return call


@functools.lru_cache
def distances(size: int) -> Tensor:
    places = torch.arange(size)
    made = torch.zeros((size, size), dtype=places.dtype)
    made[1:, 1:] = (places[1:, None] - places[None, 1:]).abs()
    return made


class Biased(nn.Module):
    """A bias by the distance of two positions, whose table and sizes two functions remember."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.table = nn.Linear(4, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(6, 8))

    @staticmethod
    @remembering
    def weights(size: int) -> Tensor:
        return 1 / (1 + torch.arange(size)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[distances(x.shape[1]).view(-1)].view(x.shape[1], x.shape[1], -1).sum(1) * self.weights(
            x.shape[1]
        )
        return self.last(torch.relu(self.first(x) + bias))


def test_what_functions_remember() -> None:
    net, x = Biased().eval(), torch.randn(2, 6, 4)
    proven(net, x, "first 8")
    assert not distances(6).is_meta
    cut = apply_plan(net, couple(net, x).plan({"first": range(3)}))
    expected, got = net(x), cut(x)
    distances.cache_clear()
    torch.testing.assert_close((net(x), cut(x)), (expected, got), rtol=0, atol=0)
