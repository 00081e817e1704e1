"""Pieces of a tensor are told apart by where they lie: one that is as long as the next is not the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes import apply_plan, couple, verify


class Slices(nn.Module):
    """Takes a tensor apart by slices at multiples of one number."""

    def __init__(self, size: int, stated: bool) -> None:
        super().__init__()
        self.size, self.stated = size, stated
        self.first, self.heads = nn.Linear(8, 4 * size), nn.ModuleList(nn.Linear(size, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        at = [(6 if self.stated else self.size) * number for number in range(5)]
        a = x[:, at[0] : at[1]]
        b = x[:, at[1] : at[2]]
        c = x[:, at[2] : at[3]]
        d = x[:, at[3] : at[4]]
        return self.heads[0](a) + self.heads[1](b) + self.heads[2](c) + self.heads[3](d)


@pytest.mark.parametrize("stated", [False, True])
def test_each_of_several_slices_has_its_own_place(stated: bool) -> None:
    net, x = Slices(6, stated).eval(), torch.randn(2, 8)
    coupling = couple(net, x)
    assert [group.size for group in coupling.groups] == [6, 6, 6, 6]
    plan = coupling.plan({group.name: range(number, 4) for number, group in enumerate(coupling.groups)})
    assert verify(net, apply_plan(net, plan), plan, x).max_error < 1e-12
