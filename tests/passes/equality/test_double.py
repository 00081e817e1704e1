"""Double precision whatever a network names."""

from __future__ import annotations

import torch
from module_law import proven
from torch import Tensor, nn


class Bytes(nn.Module):
    """Values that are stored as bytes, as small image decoders do: divided again they have the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        stored = self.encode(x).sigmoid().mul(255).round().byte()
        return self.last(torch.relu(self.decode(stored / 255.0)))


def test_what_integers_are_divided_into_is_double() -> None:
    torch.manual_seed(0)
    proven(Bytes(), torch.randn(3, 4), "encode 8, decode 6")
