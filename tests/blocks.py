"""The blocks of which tests/fuzz.py composes networks: each takes images (n, c, h, w) and gives images of one size.

A block is a module made from the number of channels (of each operand) and an integer `k` that chooses among its
variants; its attribute `out` is the number of channels that it gives. `needs` divides the channels that it takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS: dict[str, type[Block]] = {}
PAIRS: dict[str, type[Block]] = {}
_WIDTHS = (4, 6, 8, 12, 10)


class Block(nn.Module):
    """Base of all blocks: as many channels out as in, where a block says nothing else."""

    needs = 1

    def __init__(self, *channels: int, k: int = 0) -> None:
        super().__init__()
        self.out, self.k = channels[0], k
        self.setup(*channels)

    def setup(self, *channels: int) -> None:
        """Make the modules and set `out`."""


def block(kind: type[Block]) -> type[Block]:
    """Enter a block of one operand into the table."""
    BLOCKS[kind.__name__] = kind
    return kind


def pair(kind: type[Block]) -> type[Block]:
    """Enter a block of two operands into the table."""
    PAIRS[kind.__name__] = kind
    return kind


def variant(k: int, *choices: Any) -> Any:
    return choices[k % len(choices)]


@block
class Conv(Block):
    def setup(self, c: int) -> None:
        self.out = variant(self.k, *_WIDTHS)
        self.conv = nn.Conv2d(c, self.out, *variant(self.k, (1,), (3, 1, 1), (3, 1, 2, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block
class Grouped(Block):
    needs = 4

    def setup(self, c: int) -> None:
        groups = variant(self.k, 2, 4, 2)
        self.out = variant(self.k, c, 12, 8)
        self.conv = variant(self.k, nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d)(c, self.out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block
class Depthwise(Block):
    def setup(self, c: int) -> None:
        self.out = c * variant(self.k, 1, 2)
        self.conv = nn.Conv2d(c, self.out, 3, padding=1, groups=c, bias=self.k % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@block
class Pointwise(Block):
    """A linear layer over channels that come last."""

    def setup(self, c: int) -> None:
        self.out = variant(self.k, *_WIDTHS)
        self.fc = nn.Linear(c, self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@block
class Normalised(Block):
    needs = 2

    def setup(self, c: int) -> None:
        self.norm = variant(
            self.k, nn.BatchNorm2d(c), nn.GroupNorm(2, c), nn.InstanceNorm2d(c, affine=True), nn.LayerNorm(c),
            nn.BatchNorm2d(c, affine=False), nn.RMSNorm(c), nn.GroupNorm(1, c, affine=False), nn.InstanceNorm2d(c),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, (nn.LayerNorm, nn.RMSNorm)):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


@block
class Activated(Block):
    def setup(self, c: int) -> None:
        self.act = variant(
            self.k, nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.PReLU(c), nn.Hardswish(), nn.PReLU(), nn.Softplus(),
            nn.Dropout2d(0.3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@block
class Shuffled(Block):
    needs = 2

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        spelling = self.k % 5
        if spelling == 0:
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if spelling == 1:
            return F.channel_shuffle(x, 2)
        if spelling == 2:
            return torch.stack(x.chunk(2, 1), 2).flatten(1, 2)
        if spelling == 3:
            return torch.cat([x[:, ::2], x[:, 1::2]], 1)
        return x.unflatten(1, (-1, 2)).permute(0, 2, 1, 3, 4).flatten(1, 2)


@block
class Moved(Block):
    def forward(self, x: Tensor) -> Tensor:
        return variant(
            self.k, lambda: x.flip(1), lambda: x.roll(1, 1), lambda: x.roll((-2, 1), (1, 3)),
            lambda: torch.rot90(x, 1, (2, 3)), lambda: x.flip((1, 2)), lambda: x.transpose(2, 3),
        )()  # fmt: skip


@block
class SplitAndJoined(Block):
    """Split, transform one part, join in either order."""

    needs = 2

    def setup(self, c: int) -> None:
        self.first = max(1, min(c - 1, self.k))
        self.conv = nn.Conv2d(c - self.first, variant(self.k, *_WIDTHS), 1)
        self.out = self.first + self.conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.k % 3 == 0:
            a, b = x[:, : self.first], x[:, self.first :]
        else:
            a, b = x.split([self.first, x.size(1) - self.first], 1)
        b = F.silu(self.conv(b))
        return torch.cat([a, b] if self.k % 2 else [b, a], 1)


@block
class Chunks(Block):
    needs = 4

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.chunk(x, 3, dim=1)
        return torch.cat([parts[1], *parts[2:], parts[0]], 1)


@block
class Sliced(Block):
    needs = 4

    def setup(self, c: int) -> None:
        self.out = variant(self.k, c - 2, c // 2, c // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return variant(
            self.k, lambda: x[:, 1:-1], lambda: x[:, ::2] - x[:, 1::2], lambda: x[:, 1::2], lambda: x.narrow(1, 1, 3)
        )()


@block
class Padded(Block):
    def setup(self, c: int) -> None:
        self.out = c + variant(self.k, 3, 4, -1 if c > 2 else 2)

    def forward(self, x: Tensor) -> Tensor:
        extra = self.out - x.size(1)
        n, _, h, w = x.shape
        if self.k % 3 == 1:
            return torch.cat([x, x.new_zeros(n, 4, h, w)], 1)
        return F.pad(x, (0, 0, 0, 0, extra // 2, extra - extra // 2))


@block
class Repeated(Block):
    def setup(self, c: int) -> None:
        self.out = 2 * c

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return variant(
            self.k, lambda: x.repeat(1, 2, 1, 1), lambda: x.repeat_interleave(2, 1), lambda: torch.cat([x, -x], 1),
            lambda: x[:, :, None].expand(n, c, 2, h, w).reshape(n, 2 * c, h, w),
        )()  # fmt: skip


@block
class Gated(Block):
    needs = 2

    def setup(self, c: int) -> None:
        self.out = c // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.k % 3 == 0:
            return F.glu(x, 1)
        first, second = x.chunk(2, 1) if self.k % 3 == 1 else x.unflatten(1, (2, -1)).unbind(1)
        return torch.maximum(first, second)


@block
class SqueezeExcite(Block):
    def setup(self, c: int) -> None:
        self.down, self.up = nn.Linear(c, 4), nn.Linear(4, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        s = x.mean((2, 3)) if self.k % 2 else F.adaptive_avg_pool2d(x, 1).view(n, c)
        return x * torch.sigmoid(self.up(F.relu(self.down(s)))).view(n, c, 1, 1)


@block
class SpatialGate(Block):
    def setup(self, c: int) -> None:
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


@block
class PixelShuffled(Block):
    needs = 4

    def setup(self, c: int) -> None:
        self.out = variant(self.k, c // 4, 4 * c)

    def forward(self, x: Tensor) -> Tensor:
        if self.k % 2 == 0:
            return F.avg_pool2d(F.pixel_shuffle(x, 2), 2)
        return F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2)


@block
class Reshaped(Block):
    """A chain of views there and back."""

    needs = 4

    def setup(self, c: int) -> None:
        self.scale = nn.Parameter(torch.randn(c // 2))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, 2, -1, h * w)
        if self.k % 2:
            y = y.transpose(1, 3).reshape(n, h * w * (c // 2), 2).view(n, h * w, c // 2, 2).permute(0, 3, 2, 1)
        y = y * self.scale[:, None]
        return y.reshape(n * 2, c // 2, h, w).view(n, c, h, w)


@block
class FullyConnected(Block):
    """Flattened, through a matrix, and back to an image."""

    def setup(self, c: int) -> None:
        self.out = 4
        self.fc = nn.Linear(c * 16, 4 * 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.k % 2:
            x = x.permute(0, 2, 3, 1)
        return self.fc(x.flatten(1)).view(-1, 4, 4, 4)


@block
class Attended(Block):
    needs = 2

    def setup(self, c: int) -> None:
        self.norm, self.qkv, self.o = nn.LayerNorm(c), nn.Linear(c, 3 * 8), nn.Linear(8, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        if self.k % 2:
            q, k, v = self.qkv(self.norm(x)).view(n, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v) if self.k % 3 else (q @ k.mT * q.size(-1) ** -0.5).softmax(-1) @ v
        return (x + self.o(y.transpose(1, 2).reshape(n, h * w, -1))).transpose(1, 2).reshape(n, c, h, w)


@block
class Weighted(Block):
    """Parameters and buffers along the channels."""

    def setup(self, c: int) -> None:
        self.weight = nn.Parameter(torch.randn(c, 1, 1))
        self.register_buffer("offset", torch.randn(1, c, 1, 1), persistent=self.k % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.weight if self.k % 3 else x * self.weight.view(1, -1, 1, 1)


@block
class Written(Block):
    """Slices written in place."""

    needs = 2

    def forward(self, x: Tensor) -> Tensor:
        half = x.size(1) // 2
        y = torch.zeros_like(x) if self.k % 2 else x.clone()
        y[:, :half] = x[:, half:] * 0.5
        if self.k % 3:
            y[:, half:] += x[:, :half]
        return y


@block
class Centred(Block):
    """Statistics over channels: mixed groups."""

    def setup(self, c: int) -> None:
        self.gamma = nn.Parameter(torch.randn(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.k % 3 == 0:
            return x - x.mean(1, keepdim=True)
        if self.k % 3 == 1:
            length = x.norm(dim=(2, 3), keepdim=True)
            return x + self.gamma * x * (length / (length.mean(1, keepdim=True) + 1e-6))
        return x * torch.sigmoid(self.gamma * torch.relu(x).sum(1, keepdim=True))


@block
class Scanned(Block):
    """Every channel depends on the others: its number stays."""

    def forward(self, x: Tensor) -> Tensor:
        return variant(self.k, lambda: x * x.softmax(1), lambda: x.cumsum(1), lambda: x.sort(1).values)()


@block
class Branched(Block):
    """Branches stacked, weighed and summed."""

    def setup(self, c: int) -> None:
        self.out = variant(self.k, *_WIDTHS)
        self.a, self.b = nn.Conv2d(c, self.out, 1), nn.Conv2d(c, self.out, 3, padding=1, bias=False)
        self.choose = nn.Linear(self.out, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], 1)
        weights = self.choose(both.sum(1).mean((2, 3))).softmax(-1)
        return (both * weights[:, :, None, None, None]).sum(1)


@block
class Masked(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x) if self.k % 2 else x.masked_fill(x < 0.1, 0.3).clamp(max=2)


class _Fitted(Block):
    """Two operands; the second is projected where its channels differ."""

    def setup(self, c: int, d: int) -> None:
        self.fit = nn.Conv2d(d, c, 1) if c != d else nn.Identity()


@pair
class Added(_Fitted):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return variant(self.k, torch.add, torch.sub, torch.mul, torch.minimum)(x, self.fit(y))


@pair
class AddedPadded(Block):
    """The shorter operand is padded with zero channels before it is added."""

    def setup(self, c: int, d: int) -> None:
        self.out = max(c, d)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.size(1) < self.out:
            x, y = y, x
        return x + F.pad(y, (0, 0, 0, 0, 0, self.out - y.size(1)))


@pair
class Joined(Block):
    def setup(self, c: int, d: int) -> None:
        self.out = c + d if self.k % 2 else 2 * c + d

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1) if self.k % 2 else torch.cat([x, torch.cat([y, x], 1)], 1)


@pair
class GatedBy(_Fitted):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fit(y).mean((2, 3), keepdim=True))
        return x * gate.expand_as(x) if self.k % 2 else torch.addcmul(x, gate, x)


@pair
class AttendedTo(Block):
    """Places of one image attend to places of the other; the channels are what is compared."""

    def setup(self, c: int, d: int) -> None:
        self.q, self.k_, self.out = nn.Conv2d(c, 6, 1), nn.Conv2d(d, 6, 1), d

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n, _, h, w = x.shape
        weights = torch.bmm(self.q(x).flatten(2).transpose(1, 2), self.k_(y).view(n, 6, -1)).softmax(-1)
        return torch.bmm(y.flatten(2), weights.transpose(1, 2)).view(n, -1, h, w)
