"""Networks that see their channels in other dimensions: flattened, hard-coded, as pixels, as batch, repeated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.table import Stem, tiny


@tiny("conv 8")
class FlattenNchw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.max_pool2d(self.conv(x), 2), 1))


@tiny("conv 8")
class FlattenNhwc(FlattenNchw):
    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.conv(x), 2).permute(0, 2, 3, 1)
        return self.fc(x.reshape(x.shape[0], -1))


@tiny("conv 8")
class HardCodedView(FlattenNchw):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.conv(x), 3).view(-1, 8 * 3 * 3))


@tiny("conv 8")
class HardCodedBatch(FlattenNchw):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.conv(x), 3).view(2, 72))


@tiny("conv1 3, conv1#2 4")
class HardCodedChain(nn.Module):
    """Views into one literal after another, as hand-ported networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).view(-1, 3, 4, 64).transpose(2, 3).reshape(-1, 3, 8, 8, 4)
        x = x.permute(0, 1, 4, 2, 3).reshape(-1, 12, 8, 8)
        return self.conv2(x)


@tiny("conv1 6")
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.up, self.conv2 = nn.Conv2d(3, 24, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.up(self.conv1(x))))


@tiny("conv1 6")
class PixelShuffleByView(PixelShuffle):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        return self.conv2(x)


@tiny("conv1 8")
class PixelUnshuffle(Stem):
    joined = 32

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


@tiny("conv1 8")
class SpaceToDepthBySlices(Stem):
    """The focus layer of a detector: four strided views of the image, joined."""

    joined = 32

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@tiny("conv1 8")
class Repeat(Stem):
    joined = 16

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1)


@tiny("conv1 8, conv2 2")
class RepeatInterleave(Stem):
    joined = 16

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1)


@tiny("conv2 8")
class RepeatOne(Stem):
    """One channel copied to eight: their number is a literal, and the reader of the copies can lose any."""

    width, joined = 1, 8

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat(1, 8, 1, 1)


@tiny("conv1 8, conv2 3")
class ExpandInner(Stem):
    joined = 24

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x[:, :, None].expand(n, c, 3, h, w).reshape(n, c * 3, h, w)


@tiny("conv1 8")
class MoveDim(Stem):
    joined = 8

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nhwc->nchw", torch.movedim(x, 1, -1)).transpose(-1, -2).mT


@tiny("conv1 8")
class ChannelsAsBatch(Stem):
    """Every channel through one convolution: (n c) 1 h w."""

    def setup(self) -> None:
        self.blur = nn.Conv2d(1, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.blur(x.reshape(n * c, 1, h, w)).reshape(n, c, h, w)


@tiny("conv 6")
class Im2Col(nn.Module):
    """A convolution written as F.unfold and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.weight = nn.Parameter(torch.randn(5, 6 * 9))

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(torch.relu(self.conv(x)), 3)
        return (self.weight @ columns).reshape(-1, 5, 4, 4)


@tiny("conv 8")
class SqueezeByReshape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(self.conv(x), (1, 1)).squeeze(-1).squeeze(-1)
        return self.fc(x.unsqueeze(0).squeeze(0))
