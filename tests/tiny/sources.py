"""Networks that take, give or contain something unusual: nested inputs and outputs, constants, foreign operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tiny.table import Stem, image, of, tiny


class Two(nn.Module):
    """Two convolutions; a row says what is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)


@tiny("conv1 8 mixed")
class DictOutput(Two):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv1(x))
        return {"out": self.conv2(x), "pooled": x.mean((1, 2, 3))}


@tiny("conv1 8")
class NestedOutput(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, tuple[Tensor, int]]]:
        y = self.conv2(self.conv1(x))
        return y, [y * 2, x], {"more": (y.mean(), 3)}


@tiny("conv0 6", why="an output of the model keeps its shape")
class FeatureMapOutput(Two):
    """A feature map leaves the model: its channels stay, others go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(torch.relu(self.conv0(x)))
        return self.conv2(x), x


class Answer(NamedTuple):
    scores: Tensor
    best: Tensor


@tiny("conv1 8")
class NamedTupleOutput(Two):
    def forward(self, x: Tensor) -> Answer:
        y = self.conv2(self.conv1(x)).mean((2, 3))
        return Answer(y, y.argmax(1))


@tiny("a 8, b 6", lambda: (image(), image(2)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 6, 3), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(y)], 1))


@tiny("", lambda: {"x": image(), "scale": torch.randn(2, 8)}, why="an input of the model")
class KeywordInputs(Two):
    """One input meets the channels of a layer, which therefore stay; another is left out."""

    def forward(self, x: Tensor, scale: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.conv1(x) * scale[:, :, None, None]
        return self.conv2(x if mask is None else x * mask)


@tiny("conv1 8", lambda: {"batch": {"image": image(), "extra": [torch.randn(2, 4)]}})
class NestedInputs(Two):
    def forward(self, batch: dict) -> Tensor:
        x = self.conv1(batch["image"])
        return self.conv2(x) + batch["extra"][0].mean()


@tiny("conv1 8")
class InputReturned(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.conv2(torch.relu_(self.conv1(x)))


@tiny("conv1 8", why="an input of the model")
class ResidualToInput(nn.Module):
    """A restoration network predicts what to add to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


@tiny("conv1 8, conv2 4")
class ZerosInForward(Stem):
    joined = 12

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return torch.cat([x, torch.zeros(n, 4, h, w, dtype=x.dtype, device=x.device)], 1)


@tiny("conv1 8, conv2 3")
class NewZeros(Stem):
    joined = 11

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x.new_ones(x.size(0), 3, *x.shape[2:]), x], 1)


@tiny("conv1 8")
class FullInForward(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x + torch.full((8, 1, 1), 0.5, dtype=x.dtype) * torch.ones_like(x)


@tiny("more 6", why="its positions are computed here")
class ArangeAlongChannels(Stem):
    """A different number for every channel, by position."""

    joined = 6

    def setup(self) -> None:
        self.more = nn.Conv2d(8, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.more(x + torch.arange(8, dtype=x.dtype).view(1, 8, 1, 1))


@tiny("conv1 8")
class CoordConv(Stem):
    """Row and column numbers as two more channels."""

    joined = 10

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, dtype=x.dtype).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.arange(w, dtype=x.dtype)[None, None, None].expand(n, 1, h, w)
        return torch.cat([x, rows, columns], dim=1)


@tiny("conv1 8 mixed, time.0 7")
class SinusPositions(Stem):
    """Sines of the time step, through a small network, onto the channels (diffusion models)."""

    def setup(self) -> None:
        self.time = nn.Sequential(nn.Linear(6, 7), nn.SiLU(), nn.Linear(7, 8))

    def middle(self, x: Tensor) -> Tensor:
        angle = x.mean((1, 2, 3))[:, None] * torch.exp(torch.arange(3, dtype=x.dtype) * -0.5)
        return x + self.time(torch.cat([angle.sin(), angle.cos()], -1))[:, :, None, None]


@tiny("film 4, film#2 2 mixed")
class FilmByChunk(Stem):
    """Scale and shift of the channels from one linear layer."""

    def setup(self) -> None:
        self.film, self.norm = nn.Linear(3, 16), nn.GroupNorm(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.film(x.mean((2, 3)))[:, :, None, None].chunk(2, dim=1)
        return self.conv2(torch.relu(self.norm(self.conv1(x)) * (1 + scale) + shift))


@tiny("matrix 6, conv1 8")
class Einsum(Stem):
    def setup(self) -> None:
        self.matrix, self.weight = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        x = torch.einsum("oc,nchw->nohw", self.matrix, x)
        return torch.einsum("nchw,c->nchw", x, self.weight)


@tiny("conv 6")
class OuterProduct(nn.Module):
    """Second-order pooling: every channel times every other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2)
        return self.fc(torch.bmm(x, x.transpose(1, 2)).flatten(1))


@tiny("conv1 8")
class GramOutput(nn.Module):
    """A style loss: the Gram matrix is the output, so its channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.conv1(x))).flatten(2)
        return torch.einsum("ncs,nds->ncd", x, x)


@torch.library.custom_op("fxprune_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    """An operator nobody has a rule for."""
    return x * 0.5


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


halved.register_autograd(lambda _, grad: grad * 0.5)


@tiny("more 6", why="no rule says")
class CustomOperator(Stem):
    """It freezes its own axes alone."""

    joined = 6

    def setup(self) -> None:
        self.more = nn.Conv2d(8, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.more(halved(x)))


class Hidden(nn.Module):
    """A module that knows its width in a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.inner = width, nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.inner(x.reshape(n, self.width, h * w).mean(2))


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Hidden) or super().is_leaf_module(m, module_qualified_name)


@tiny("conv0 6")
def LeafWithHiddenSize() -> nn.Module:
    """The user traced it, and left a module of their own closed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv0, self.conv1 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
            self.hidden, self.head = Hidden(8), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.hidden(self.conv1(torch.relu(self.conv0(x))))))

    net = Net()
    return fx.GraphModule(net, LeafTracer().trace(net))


@fx.wrap
def folded(x: Tensor, width: int) -> Tensor:
    """A function that stays one call where it is not traced through."""
    return x.reshape(x.shape[0], width, -1).mean(2)


@tiny("conv 8")
class WrappedFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(folded(self.conv(x), 8))


@tiny("net.0 8, net.15 6, net.20 7 mixed")
class SequentialOfAll(nn.Module):
    """Every small module that people put between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1, inplace=True), nn.ZeroPad2d(1),
            nn.ReflectionPad2d(1), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, groups=8), nn.ELU(),
            nn.Hardswish(), nn.Dropout(0.1), nn.ConstantPad2d(1, 0.3), nn.MaxPool2d(2), nn.Softplus(), nn.Identity(),
            nn.Conv2d(8, 6, 1), nn.Mish(), nn.ReLU6(), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(24, 7),
            nn.Unflatten(1, (7, 1)), nn.Flatten(1), nn.LayerNorm(7), nn.Linear(7, 5), nn.LogSoftmax(dim=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@tiny("a 8", of(2, 3, 4))
class Complex(nn.Module):
    """A Fourier transform over time between two layers (FNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.fft(self.a(x), dim=1).real)


@tiny("")
class NothingToPrune(nn.Module):
    """One layer from the input to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


@tiny("conv1 8")
class UnusedLayer(Two):
    """A layer that forward never calls keeps its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))
