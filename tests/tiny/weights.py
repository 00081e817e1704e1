"""Networks whose weights are unusual: shared, frozen, grouped, transposed, computed, parametrized, or buffers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from tiny.table import Stem, of, tiny


@tiny("conv1 8")
class Depthwise(Stem):
    def setup(self) -> None:
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return self.depthwise(x)


@tiny("conv1 8, depthwise 3")
class DepthMultiplier(Stem):
    joined = 24

    def setup(self) -> None:
        self.depthwise = nn.Conv2d(8, 24, 3, padding=1, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return self.depthwise(x)


@tiny("conv1 2, conv1#2 4, grouped 6")
class Grouped(Stem):
    joined = 12

    def setup(self) -> None:
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.grouped(x))


@tiny("conv1 6, b 4")
class GroupedTwice(Stem):
    """Two groupings that cut the same channels in different places."""

    width, joined = 12, 12

    def setup(self) -> None:
        self.a, self.b = nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 12, 1, groups=3)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@tiny("conv1 2, conv1#2 4, grouped 2")
class GroupedOnConcat(Stem):
    """Groups of four on 8 + 4 channels."""

    joined = 6

    def setup(self) -> None:
        self.other, self.grouped = nn.Conv2d(3, 4, 1), nn.Conv2d(12, 6, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.grouped(torch.cat([self.conv1(x), self.other(x)], 1)))


@tiny("conv1 8, up 6")
class Transposed(Stem):
    joined = 6

    def setup(self) -> None:
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(x)


@tiny("conv1 4, conv1#2 2, up 3")
class TransposedGrouped(Stem):
    joined = 12

    def setup(self) -> None:
        self.up, self.deep = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), nn.ConvTranspose2d(12, 12, 2, groups=12)

    def middle(self, x: Tensor) -> Tensor:
        return self.deep(self.up(x))


@tiny("a 8, b 6", of(2, 3, 16))
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 6, 3, dilation=2, padding="same")
        self.norm, self.c = nn.BatchNorm1d(6), nn.ConvTranspose1d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.max_pool1d(self.norm(self.b(F.gelu(self.a(x)))), 2))


@tiny("a 2, a#2 4, b 3", of(2, 3, 4, 6, 6))
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 6, (1, 3, 3), groups=2)
        self.norm, self.c = nn.BatchNorm3d(6), nn.ConvTranspose3d(6, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.avg_pool3d(torch.relu(self.norm(self.b(self.a(x)))), 2))


@tiny("conv 8", of(2, 3, 4, 6, 6))
class FrameByFrame(nn.Module):
    """Images of a video through one network, frames folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        y = torch.relu(self.conv(x.transpose(1, 2).reshape(n * t, c, h, w)))
        return self.fc(y.flatten(2).mean(-1).view(n, t, -1).mean(1))


@tiny("conv1 8")
class CalledTwice(Stem):
    def setup(self) -> None:
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.again(torch.relu(self.again(x)))


@tiny("a 8, shared 6")
class SharedBranches(nn.Module):
    """One convolution over two inputs of different making: a siamese pair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.shared(self.a(x)), self.shared(self.b(x))], 1))


@tiny("stem 8, encode 6")
class TiedLinears(nn.Module):
    """An encoder and a decoder over one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encode, self.decode = nn.Linear(3, 8), nn.Linear(8, 6, bias=False), nn.Linear(8, 6)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encode(self.stem(x.mean((2, 3)))) + self.decode.bias)
        return self.head(code @ self.decode.weight)


@tiny("weight 8")
class FunctionalWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
        self.scale, self.matrix = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1)
        x = F.batch_norm(x, None, None, self.scale, None, training=True)
        return torch.relu(x).mean((2, 3)) @ self.matrix


@tiny("conv1 8")
class ScaledWeights(Stem):
    """A weight that is multiplied and clipped before it is used (quantisation, equalised learning rates)."""

    def setup(self) -> None:
        self.gain = nn.Parameter(torch.randn(8, 1, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.conv1.weight[:, :1] * self.gain).clamp(-1, 1).expand(8, 8, 3, 3), padding=1)


@tiny("conv1 8 mixed, inner 6")
class StandardisedWeights(Stem):
    """Weights centred and scaled over their inputs: removing an input channel would change the others."""

    def setup(self) -> None:
        self.inner = nn.Conv2d(8, 6, 3, padding=1)

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        w = self.inner.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.inner.bias, padding=1)


@tiny("u 8, u#2 4, v 6, base 7, down 2")
class LowRank(nn.Module):
    """A matrix as a product of two, and one with a low-rank correction beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.u, self.v = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4, 6))
        self.base, self.down, self.up = nn.Linear(6, 7), nn.Linear(6, 2, bias=False), nn.Linear(2, 7, bias=False)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x.mean((2, 3))))
        x = torch.relu(x @ (self.u @ self.v))
        return self.head(self.base(x) + 0.5 * self.up(self.down(x)))


@tiny("conv1 8, inner 6 mixed")
class WeightNormOld(Stem):
    def setup(self) -> None:
        self.inner = weight_norm(nn.Conv2d(8, 6, 3, padding=1))

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        return self.inner(x)


@tiny("conv1 8, inner 6 mixed")
class WeightNormNew(WeightNormOld):
    def setup(self) -> None:
        self.inner = parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1))


@tiny("conv1 8, inner 6")
class SpectralNormOld(WeightNormOld):
    def setup(self) -> None:
        self.inner = spectral_norm(nn.Conv2d(8, 6, 3, padding=1))


@tiny("conv1 8, inner 6")
class SpectralNormNew(WeightNormOld):
    def setup(self) -> None:
        self.inner = parametrizations.spectral_norm(nn.Conv2d(8, 6, 3, padding=1))


class _Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@tiny("conv1 8, inner 6")
class ParametrizedPointwise(WeightNormOld):
    def setup(self) -> None:
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        parametrize.register_parametrization(self.inner, "weight", _Squared())


@tiny("more 7", why="triangle")
class ParametrizedSymmetric(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.square, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        parametrize.register_parametrization(self.square, "weight", _Symmetric())
        self.more = nn.Linear(6, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.more(self.square(self.stem(x.mean((2, 3)))))))


@tiny("conv1 8, inner 6")
class FrozenWeights(Stem):
    """Parameters that do not train can still be removed, and stay frozen."""

    def setup(self) -> None:
        self.conv1.weight.requires_grad_(False)
        self.inner = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False)

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        return self.inner(x)


@tiny("conv1 8")
class NoGradStem(Stem):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.conv1(x))
        return self.conv2(x.detach())


@tiny("conv1 8")
class BuffersAlongChannels(Stem):
    """Fixed offsets and masks, persistent and not, and a plain tensor attribute."""

    def setup(self) -> None:
        self.register_buffer("offset", torch.randn(8, 1, 1))
        self.register_buffer("mask", (torch.arange(8) % 3 > 0)[None, :, None, None].double(), persistent=False)
        self.plain = torch.randn(8, 1, 1, dtype=torch.float64)

    def middle(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.mask + self.plain


@tiny("conv1 8")
class InputStatistics(Stem):
    """Means and deviations of the three colours: they belong to the input."""

    def setup(self) -> None:
        self.register_buffer("mean", torch.randn(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / 0.5)


@tiny("conv1 8")
class TimesParameter(Stem):
    def setup(self) -> None:
        self.gamma, self.beta = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(8))

    def middle(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta.view(1, -1, 1, 1) + self.beta.reshape(8, 1, 1)


@tiny("route 4, experts 6, experts#2 8")
class ConditionalConv(Stem):
    """Kernels mixed from experts by the input (CondConv), one grouped convolution over the batch."""

    def setup(self) -> None:
        self.route, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 6 * 8 * 9))

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weights = torch.sigmoid(self.route(x.mean((2, 3)))) @ self.experts
        y = F.conv2d(x.reshape(1, n * c, h, w), weights.view(n * 6, c, 3, 3), padding=1, groups=n)
        return y.view(n, 6, h, w)


@tiny("a 6, b 4, mix 7")
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix, self.head = nn.Linear(3, 6), nn.Linear(3, 4), nn.Bilinear(6, 4, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.head(torch.relu(self.mix(torch.relu(self.a(x)), self.b(x))))


@tiny("down1 6, down2 10, up 7, join 8")
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(10, 7, 2, 2), nn.Conv2d(13, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down1(x))
        b = torch.relu(self.down2(F.max_pool2d(a, 2)))
        return self.head(torch.relu(self.join(torch.cat([self.up(b), a], 1))))


@tiny("stem 8, a1 6, short 10")
class Residuals(nn.Module):
    """Two residual blocks and a projection; the residual width is one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.b, self.short = nn.Conv2d(8, 10, 3, 2, 1), nn.Conv2d(8, 10, 1, 2)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm2(self.a2(F.relu(self.norm1(self.a1(x))))), inplace=True)
        x = F.relu(self.short(x) + self.b(x))
        return self.head(x.mean((-2, -1)))
