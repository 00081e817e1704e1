"""Networks that pick channels by indices: orders that the program states, some of them, copies; computed ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiny.table import Stem, of, tiny


class Ordered(Stem):
    """An order in a buffer; a row says how it is used."""

    def setup(self) -> None:
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 4, 6, 5]))


@tiny("conv1 8")
class OrderSelected(Ordered):
    def middle(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


@tiny("conv1 8")
class OrderComputed(Stem):
    """The numbers are made of the size, which keeps its old value in them; then they are places that remain."""

    def middle(self, x: Tensor) -> Tensor:
        return x[:, torch.arange(x.shape[1] - 1, -1, -1)]


@tiny("conv1 8")
class OrderAndBack(Ordered):
    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.order][:, torch.argsort(self.order)] + x


@tiny("conv1 2, conv1#2 2")
class OrderAdded(Ordered):
    """The cycles of the order: (0 3 2), (4 7 5), and two channels that stay where they are."""

    def middle(self, x: Tensor) -> Tensor:
        return x + x[:, self.order]


@tiny("conv1 2, conv1#2 4, grouped 2")
class ShuffleByOrder(Stem):
    """The order of a channel shuffle, and a grouped convolution that needs it to be one."""

    def setup(self) -> None:
        self.register_buffer("order", torch.arange(8).view(2, 4).t().flatten())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.grouped(x[:, self.order])


@tiny("conv1 4, conv1#2 4")
class PickedByFlags(Stem):
    joined = 4

    def setup(self) -> None:
        self.register_buffer("kept", torch.tensor([1, 0, 1, 0, 0, 1, 1, 0], dtype=torch.bool))

    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.kept]


@tiny("conv1 3, conv1#2 5, inner 3")
class PickedAndRest(Stem):
    """Some channels go another way than the rest, and all are joined."""

    def setup(self) -> None:
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x[:, [6, 1, 3]]), x[:, [0, 2, 4, 5, 7]]], 1)


@tiny("conv1 8")
class PickedTwiceEach(Stem):
    joined = 16

    def middle(self, x: Tensor) -> Tensor:
        return x[:, [n // 2 for n in range(16)]]


@tiny("", why="more often than others")
class PickedUnevenly(Stem):
    joined = 5

    def middle(self, x: Tensor) -> Tensor:
        return x[:, [0, 0, 3, 4, 7]]


@tiny("conv1 4, conv1#2 4")
class FlipThenSplit(Stem):
    def middle(self, x: Tensor) -> Tensor:
        first, second = x.flip(1).chunk(2, dim=1)
        return torch.cat([torch.relu(second), first], dim=1)


@tiny("", why="picked by an index")
class IndexWrittenTo(Ordered):
    """An order that forward changes is not what its buffer says."""

    def middle(self, x: Tensor) -> Tensor:
        order = self.order.clone()
        order[0] = 5
        return x[:, order]


@tiny("conv1 8")
class ScatterOverSpace(Stem):
    def middle(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return x * torch.zeros_like(flat).scatter(2, flat.argmax(2, keepdim=True), 1.0).view_as(x)


@tiny("conv1 8")
class PowersAndNumbers(Stem):
    """Functions that take a tensor or a number in one place."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.1, torch.pow(x, 3.0), 0.0) + torch.remainder(x, 2.0)


@tiny("qkv 3, qkv#2 4, qkv#3 4", of(1, 12, 4, 4))
class OneImageManyHeads(nn.Module):
    """Heads folded into a batch of one: the number of both looks like the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(12, 36, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).chunk(3, 1)
        q, k, v = q.reshape(n * 3, 4, -1).mT, k.reshape(n * 3, 4, -1), v.reshape(n * 3, 4, -1).mT
        return self.out(((q @ k * 0.5).softmax(-1) @ v).mT.reshape(n, c, h, w))


@tiny("conv1 8 mixed")
class WrittenWhereFlagged(Stem):
    """A number that is not zero, and then a sum over the channels: it is written to removed ones too."""

    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[x < 0.3] = 0.5
        return x / x.sum(1, keepdim=True)


@tiny("", why="written at listed places")
class WrittenAtChannels(Stem):
    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, [0, 5]] = 0.0
        return x
