"""Networks that move channels about: shuffles, flips, slices, splits, joins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.table import Stem, of, tiny


@tiny("conv1 2, conv1#2 4")
class ShuffleByView(Stem):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@tiny("conv1 4, conv1#2 2")
class ShuffleByPermute(Stem):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.reshape(n, 4, -1, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


@tiny("conv1 2, conv1#2 4")
class ShuffleByFunction(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, 2)


@tiny("conv1 4, conv1#2 2")
class ShuffleByModule(Stem):
    def setup(self) -> None:
        self.shuffle = nn.ChannelShuffle(4)

    def middle(self, x: Tensor) -> Tensor:
        return self.shuffle(x)


@tiny("conv1 4")
class ShuffleByStack(Stem):
    def middle(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.stack([first, second], 2).flatten(1, 2)


@tiny("conv1 4")
class ShuffleBySlices(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)


@tiny("conv1 2, conv1#2 4")
class ShuffleByUnflatten(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 4)).swapaxes(1, 2).flatten(1, 2)


@tiny("conv1 8")
class ShuffleByIndex(Stem):
    def setup(self) -> None:
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 4, 6, 5]))

    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.order]


@tiny("conv1 8")
class ShuffleByGather(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x[:, [3, 1, 0, 2, 7, 4, 6, 5]]


@tiny("stem 2, stem#2 2, stem#3 4, branch1.0 6, branch2.0 6")
class ShuffleUnit(nn.Module):
    """Split, transform one half, join, shuffle: the unit of ShuffleNet v2, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch1, self.branch2 = self.branch(), self.branch()
        self.head = nn.Linear(8, 5)

    def branch(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 6, 1),
            nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in (self.branch1, self.branch2):
            first, second = x.chunk(2, dim=1)
            x = F.channel_shuffle(torch.cat([first, branch(second)], dim=1), 2)
        return self.head(x.mean([2, 3]))


@tiny("conv1 8")
class FlipChannels(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1)


@tiny("conv1 4")
class FlipAndAdd(Stem):
    """A channel is added to its mirror image: they can only go together."""

    def middle(self, x: Tensor) -> Tensor:
        return x + torch.flip(x, [1])


@tiny("conv1 8")
class FlipSpace(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.rot90(x.flip(-1), 1, [2, 3])


@tiny("conv1 5, conv1#2 3")
class RollChannels(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(x, 3, 1)


@tiny("conv1 3, conv1#2 5")
class RollChannelsBack(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(torch.tanh(x.roll(shifts=(-3, 1), dims=(1, 2))), (3, -1), (1, 2))


@tiny("conv1 8")
class RollSpace(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x.roll((-2, 1), (2, 3))


@tiny("conv1 3, conv1#2 5")
class UnevenSplit(Stem):
    def middle(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [3, 5], dim=1)
        return torch.cat([torch.tanh(second), first], dim=1)


@tiny("conv1 4, conv1#2 2")
class OddChunks(nn.Module):
    """chunk(3) of ten channels gives 4, 4 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.conv2, self.conv3 = nn.Conv2d(4, 5, 3), nn.Conv2d(2, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.conv1(x).chunk(3, 1)
        return self.conv2(a * torch.sigmoid(b)) + self.conv3(c)


@tiny("conv1 2, conv1#2 3, conv1#3 3")
class TensorSplit(Stem):
    def middle(self, x: Tensor) -> Tensor:
        a, b, c = x.tensor_split((2, 5), dim=1)
        return torch.cat([c, torch.relu(b), a], 1)


@tiny("conv1 4")
class StridedSlices(Stem):
    joined = 4

    def middle(self, x: Tensor) -> Tensor:
        return x[:, ::2] - x[:, 1::2]


@tiny("conv1 2, conv1#2 5")
class InnerSlice(Stem):
    joined = 5

    def middle(self, x: Tensor) -> Tensor:
        return x[:, 2:-1]


@tiny("conv1 3")
class Narrow(Stem):
    joined = 3

    def middle(self, x: Tensor) -> Tensor:
        return x.narrow(1, 1, 3) + torch.narrow(x, 1, 5, 3)


@tiny("conv1 3, conv1#2 4")
class OneChannelApart(Stem):
    joined = 8

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x[:, 3:4])


@tiny("conv1 6")
class SelectChannel(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x * x[:, 0].unsqueeze(1) + x.select(1, -1)[:, None]


@tiny("conv1 2")
class Unbind(Stem):
    joined = 2

    def middle(self, x: Tensor) -> Tensor:
        a, b, _, _ = x.unflatten(1, (2, 4)).unbind(2)
        return a + b


@tiny("conv1 4")
class UnbindOuter(Stem):
    """The outer factor is taken apart; what is inside each part stays free."""

    joined = 4

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.unflatten(1, (2, 4)).unbind(1)
        return a * b


@tiny("conv1 3, conv1#2 5")
class IndexSelect(Stem):
    """What is not picked, nobody reads."""

    joined = 3

    def middle(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, torch.tensor([0, 4, 2]))


@tiny("stem 6, conv1 10, conv2 2, conv2#2 2")
class OptionA(nn.Module):
    """A shortcut without weights: every second pixel, zeros for the channels that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(6, 10, 3, 2, 1), nn.Conv2d(10, 10, 3, padding=1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.conv2(torch.relu(self.conv1(x)))
        x = torch.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@tiny("conv1 8, conv2 4")
class PadByCat(Stem):
    joined = 12

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(x.shape[0], 4, x.shape[2], x.shape[3], dtype=x.dtype)], 1)


@tiny("conv1 2, conv1#2 6")
class NegativePad(Stem):
    joined = 7

    def middle(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 0, 0, -2, 1), value=0.5)


@tiny("a 6, b 4, c 5, d 7")
class NestedConcat(nn.Module):
    """A dense block within a dense block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 5, 3, padding=1)
        self.d, self.head = nn.Conv2d(21, 7, 1), nn.Conv2d(22, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        ab = torch.cat([a, b], 1)
        c = torch.relu(self.c(ab))
        d = self.d(torch.cat([a, ab, c], 1))
        return self.head(torch.cat([torch.cat([c, ab], 1), d], 1))


@tiny("conv1 8")
class SameTensorTwice(Stem):
    joined = 16

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


@tiny("a 3, a#2 3, b 4")
class ConcatAddedToConcat(nn.Module):
    """6 + 4 channels added to 3 + 7: the common refinement is 3 + 3 + 4."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, n, 3) for n in (6, 4, 3, 7))
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1))


@tiny("", why="cut apart")
class SetItem(Stem):
    """Every channel is written over the third before it: nothing but single channels is left, and all are tied."""

    def middle(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :5] = x[:, 3:]
        y[:, 5:] = x[:, :3] * 2
        return y


@tiny("conv1 2, conv1#2 2, conv1#3 4", of(4, 3, 8, 8))
class TemporalShift(Stem):
    """A quarter of the channels moves to the frame before, a quarter to the one behind."""

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        frames, fold = x.view(n // 2, 2, c, h, w), c // 4
        out = torch.zeros_like(frames)
        out[:, :-1, :fold] = frames[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
        return out.view(n, c, h, w)


@tiny("conv1 2, conv1#2 3, conv1#3 2")
class InPlaceSlices(Stem):
    """A run of channels changed where it stands."""

    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 2:6].mul_(0.5)
        x[:, :3] += 1.0
        return x


@tiny("conv1 8")
class StackAndSum(Stem):
    def setup(self) -> None:
        self.other = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.stack([self.conv1(x), self.other(x)], dim=1).sum(1))
