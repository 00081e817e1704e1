"""Sizes that hang on values are those of the example: counted right, and nothing that they touch is offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from passes import PruneChannels, capture, cost, couple, verify


class Picked(nn.Module):
    """Rows that values pick or repeat, between two pairs of layers."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.a, self.b, self.pick = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 4), pick

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(self.pick(self.before(x), values))))


PICKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "repeated": lambda x, v: x.repeat_interleave(v, dim=0),
    "masked": lambda x, v: x[v > 1],
    "nonzero": lambda x, v: x[(v > 1).nonzero().squeeze(1)],
    "selected": lambda x, v: torch.masked_select(x, (v > 1)[:, None]).view(-1, 8),
    "unique": lambda x, v: x[torch.unique(v) - 1],
}


@pytest.mark.parametrize("pick", PICKS)
def test_rows_are_counted_as_on_the_example(pick: str) -> None:
    torch.manual_seed(0)
    model, inputs = Picked(PICKS[pick]).eval(), (torch.randn(5, 8), torch.tensor([1, 2, 3, 2, 4]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    gm = capture(model, inputs, "fx")
    coupling = couple(gm, inputs)
    assert cost(coupling).flops() == counter.get_total_flops()
    plan = coupling.plan({"a": tuple(range(0, 32, 2))})
    pruned = PruneChannels(plan)(gm).graph_module
    verify(gm, pruned, plan, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_values_the_analysis_still_says_what_can_be_pruned() -> None:
    inputs: Any = (torch.empty(5, 8, device="meta"), torch.empty(5, dtype=torch.int64, device="meta"))
    gm = capture(Picked(PICKS["repeated"]).eval(), inputs, "fx")
    assert "a" in {group.name for group in couple(gm, inputs).groups}
