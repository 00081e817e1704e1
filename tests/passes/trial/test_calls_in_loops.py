"""Numbers in calls of a loop that turns more often on other inputs than on the example."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from passes import apply_plan, couple, verify


class Pieces(nn.Module):
    """Its pieces are viewed as four by four channels, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.joined(self.a(x)))

    def joined(self, h: Tensor) -> Tensor:
        return torch.cat([piece.view(*piece.shape[:2], 4, 4).tanh().flatten(2) for piece in h.split(2, 1)], 1)


class LongInPieces(Pieces):
    """In pieces where the input is long alone."""

    def joined(self, h: Tensor) -> Tensor:
        return super().joined(h) if h.shape[1] > 20 else h.tanh()


class Unlike(Pieces):
    """The second piece has another form than the first."""

    def joined(self, h: Tensor) -> Tensor:
        pieces = enumerate(h.split(2, 1))
        return torch.cat(
            [p.view(*p.shape[:2], *((4, 4) if n != 1 else (2, 8))).tanh().flatten(2) for n, p in pieces], 1
        )


@pytest.mark.parametrize("kind", [Pieces, LongInPieces])
@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_later_turns_are_given_the_same(kind: type[nn.Module], copied: object) -> None:
    torch.manual_seed(0)
    net = kind().double().eval()
    coupling = couple(net, torch.randn(2, 5, 6, dtype=torch.float64))
    plan = coupling.plan({group.name: range(1, group.size // 2 + 1) for group in coupling.groups})
    cut = apply_plan(net, plan)
    assert cut.a.out_features == 4
    for length in (5, 31):
        inputs = torch.randn(2, length, 6, dtype=torch.float64)
        certificate = verify(net, copied(cut), plan, inputs)  # type: ignore[operator]
        assert certificate.max_error < 1e-12


def test_turns_that_are_given_different_numbers_say_nothing_of_later_ones() -> None:
    net = Unlike().double().eval()
    coupling = couple(net, torch.randn(2, 5, 6, dtype=torch.float64))
    for group in coupling.groups:
        plan = coupling.plan({group.name: range(group.size // 2)})
        verify(net, apply_plan(net, plan), plan, torch.randn(2, 5, 6, dtype=torch.float64))
