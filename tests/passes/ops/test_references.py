"""Operators that mix units and that nothing is known of on fewer units keep their axes."""

import torch
from torch import nn

from passes import capture, couple, rule
from passes.ops import unregister


@torch.library.custom_op("fxprune_tests::centred", mutates_args=())
def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(1, keepdim=True)


@centred.register_fake
def _(x):
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(self.b(torch.ops.fxprune_tests.centred(self.a(x))))


def test_a_rule_that_mixes_without_a_reference_freezes_what_it_mixes():
    operator = torch.ops.fxprune_tests.centred

    def mixing(call):
        axes = call.axes("x")
        call.mix(axes[1])
        return [axes]

    rule(operator)(mixing)
    try:
        coupling = couple(capture(Net()), torch.randn(2, 3))
    finally:
        unregister(operator)
    assert coupling.widths == {"b": 8}
    (frozen,) = (f for f in coupling.frozen if f.tensor == "a.weight" and f.dim == 0)
    assert "no reference" in frozen.reason and "centred" in frozen.node
