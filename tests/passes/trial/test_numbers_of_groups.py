"""A call may state how many groups an axis has and fit every shape without following: it is made to follow."""

import torch
import torch.nn.functional as F
from torch import nn

from passes import apply_plan, couple, verify


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        return self.b(F.channel_shuffle(self.a(x), 4).relu())


def test_a_number_of_groups_follows_though_every_shape_fits_without():
    net, x = Shuffled().eval(), torch.randn(2, 3, 6, 6)
    coupling = couple(net, x)
    for name, size in coupling.widths.items():
        plan = coupling.plan({name: range(1, size - 1)})
        assert verify(net, apply_plan(net, plan), plan, x).max_error < 1e-9
    assert coupling.widths == {"a": 4, "a#2": 4}
