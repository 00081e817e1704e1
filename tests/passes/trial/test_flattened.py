"""Flattened channels of pooled images: an axis of units and of constants is as long as promised at every size."""

from __future__ import annotations

import pytest
import torch
from module_law import proven
from torch import Tensor, nn
from torch.nn import functional as F

from passes import EquivalenceError, apply_plan, couple, verify

IMAGE = torch.randn(2, 3, 12, 12)


class Flattened(nn.Module):
    """A convolution, a pooling to 2 x 2, and a linear layer on what a flatten makes of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1)))

    def read(self, h: Tensor) -> Tensor:
        return h


class StatedLength(Flattened):
    def read(self, h: Tensor) -> Tensor:
        return h.view(-1, 32)


class StatedPlaces(Flattened):
    """Reads the first 16 columns twice: four channels of the eight, by a number."""

    def read(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, :16], h[:, :16]], 1)


class OfTheImage(Flattened):
    """The pooled image is as large as the input says, and cut to 32 columns afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.conv(x).relu(), 6).flatten(1)
        return self.out(h[:, :32])


class Branches(Flattened):
    """Takes another way where the flattened axis is short, as it becomes by a cut."""

    def read(self, h: Tensor) -> Tensor:
        return h if h.shape[1] > 20 else -h


def test_a_flattened_image_of_fixed_size_is_proven_at_other_sizes() -> None:
    cut, _, certificate = proven(Flattened(), IMAGE, "conv 8")
    assert cut(torch.randn(1, 3, 30, 17)).shape == (1, 5)
    assert any("length" in size for size in certificate.sizes)


@pytest.mark.parametrize("kind", [StatedLength, StatedPlaces, OfTheImage, Branches])
def test_numbers_beside_a_flattened_axis_are_right_or_refused(kind: type[Flattened]) -> None:
    net = kind().eval()
    coupling = couple(net, IMAGE)
    for group in coupling.groups:
        size = group.size
        for units in (range(size // 2), range(0, size, 2), range(size - 1), (1,)):
            plan = coupling.plan({group.name: units})
            cut = apply_plan(net, plan)
            try:
                verify(net, cut, plan, IMAGE)
            except EquivalenceError:
                assert kind is Branches, "only a threshold that no analysed width crossed may be left to the proof"
