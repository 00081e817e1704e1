"""Networks for the tests of export: small, pairwise different sizes, every kind of tensor that a file must carry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cnn(nn.Module):
    """Batch norm, a residual, a grouped convolution, dropout and an integer buffer (num_batches_tracked)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(12, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 12, 1)
        )
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.block(x))
        return self.head(self.drop(x.mean((2, 3))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Vit(nn.Module):
    """Patches, a class token, positions, two pre-norm blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 10, 12))
        self.norms = nn.ModuleList([nn.LayerNorm(12) for _ in range(4)])
        self.attentions = nn.ModuleList([Attention(12, 3) for _ in range(2)])
        self.mlps = nn.ModuleList([nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(2)])
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for index in range(2):
            x = x + self.attentions[index](self.norms[2 * index](x))
            x = x + self.mlps[index](self.norms[2 * index + 1](x))
        return self.head(x[:, 0])


class Lstm(nn.Module):
    """Token ids through an embedding and a two-layer bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 9, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(18, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(tokens))[0][:, -1])


class Odd(nn.Module):
    """Tied weights, a large and a small non-persistent buffer, integers, a frozen parameter, keyword inputs."""

    table: Tensor
    step: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 10)
        self.outer = nn.Linear(10, 6)
        self.decoder = nn.Linear(6, 11, bias=False)
        self.decoder.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.rand(6), requires_grad=False)
        self.register_buffer("table", torch.randn(70, 6), persistent=False)
        self.register_buffer("step", torch.tensor([0.25, float("inf")]), persistent=False)
        self.register_buffer("count", torch.arange(3))

    def forward(self, tokens: Tensor, *, shift: Tensor | None = None, start: int = 0) -> dict[str, Tensor]:
        x = self.embedding(tokens) * self.scale + self.table[start : start + 4] * self.step[0]
        x = x + self.outer(F.relu(self.inner(x)))
        if shift is not None:
            x = x + shift
        return {"logits": self.decoder(x), "count": self.count + 1}


def inputs_of(net: nn.Module) -> Tensor:
    """An example of what the network takes: batch size 2 for images, 3 for tokens."""
    generator = torch.Generator().manual_seed(5)
    if isinstance(net, Lstm):
        return torch.randint(0, 11, (3, 5), generator=generator)
    size = 9 if isinstance(net, Cnn) else 12
    return torch.randn(2, 3, size, size, generator=generator)
