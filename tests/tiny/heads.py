"""Attention in many hands: by itself, in torch's layers and in a vision transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.table import of, tiny

tokens = of(2, 5, 12)


class Attention(nn.Module):
    """Width 12, three heads of 4, a residual connection and a head; a row says how the heads are made."""

    heads, dim = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 12), nn.Linear(12, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.setup()

    def setup(self) -> None:
        """Further modules of a row."""

    def attend(self, x: Tensor) -> Tensor:
        """What the row is about."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attend(x))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class AttentionByMatmul(Attention):
    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(4), dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(n, length, 12))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class AttentionScaledBySize(Attention):
    """The scale is read from a size; the masked network divides by the old one."""

    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.mT / q.size(-1) ** 0.5, dim=-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


@tiny("embed 12, q 3, q#2 4 mixed, v 4", tokens)
class RotaryByPeriods(Attention):
    """Angles are quotients by a buffer: with its units zeroed the masked network has infinite ones, times zero."""

    def setup(self) -> None:
        self.register_buffer("periods", torch.tensor([1.0, 3.0, 9.0, 27.0], dtype=torch.float64))

    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        angles = torch.arange(5, dtype=torch.float64)[:, None] / self.periods
        mixed = F.scaled_dot_product_attention(q * angles.cos(), k * angles.cos(), v)
        return self.o(mixed.transpose(1, 2).reshape(n, length, 12))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class AttentionByBmm(Attention):
    """Heads folded into the batch, as fairseq does."""

    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        projected = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k, v = (t.contiguous().view(n * 3, length, 4) for t in projected)
        weights = torch.softmax(torch.bmm(q * 0.5, k.transpose(1, 2)), -1)
        y = torch.bmm(weights, v).view(n, 3, length, 4).transpose(1, 2).reshape(n, length, 12)
        return self.o(y)


@tiny("embed 12, q 4, v 4", tokens)
class AttentionWithAlibi(Attention):
    """As Bloom does: a bias for each head, computed anew, is what the folded product is added to; the heads stay."""

    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        slopes = torch.pow(torch.full((), 0.25, dtype=x.dtype), torch.arange(1, q.shape[1] + 1))
        alibi = (slopes[:, None, None] * torch.arange(length)).repeat(n, 1, 1)
        q, k, v = (t.reshape(n * 3, -1, 4) for t in (q, k, v))
        weights = torch.softmax(alibi.to(x.dtype).baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=0.5), -1)
        return self.o(torch.bmm(weights, v).view(n, 3, length, 4).transpose(1, 2).reshape(n, length, 12))


@tiny("embed 12, q 3, q#2 4, v 4", tokens, shares=(1 / 2,))
class AttentionByEinsum(Attention):
    """With a head dim of one, torch's einsum takes no matrix product, and its counter counts none."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)) for f in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(0.5).softmax(-1)
        return self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class AttentionBySdpa(Attention):
    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class AttentionCausal(Attention):
    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).contiguous().view(n, length, 12))


@tiny("q 3, embed 12, q#2 4, v 4", tokens)
class AttentionWithBias(Attention):
    """A learnt bias for every head and pair of places, and a mask."""

    def setup(self) -> None:
        self.bias = nn.Parameter(torch.randn(3, 5, 5))
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) * 0.5 + self.bias).masked_fill(~self.mask, float("-inf"))
        first = weights.softmax(-1) @ v
        second = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])
        return self.o((first + second).transpose(1, 2).flatten(2))


@tiny("embed 12, qkv 3, qkv#2 4", tokens)
class FusedQkv(Attention):
    """One projection for q, k and v, as in vision transformers: (3 h d)."""

    def setup(self) -> None:
        self.qkv = nn.Linear(12, 36)
        del self.q, self.k, self.v

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(n, length, width))


@tiny("embed 12, qkv 3, qkv#2 4, qkv#3 4", tokens)
class FusedQkvChunked(FusedQkv):
    """The same, taken apart by chunk before it is cut into heads."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.o(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))


@tiny("embed 12, qkv 3, qkv#2 4, qkv#3 4", tokens)
class FusedQkvInterleaved(FusedQkv):
    """q, k and v side by side within each head (GPT-NeoX): (h 3 d)."""

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 3 * 4).permute(0, 2, 1, 3).split(4, dim=-1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


@tiny("embed 12, qkv 3, qkv#2 4", tokens)
class FusedQkvByIndex(FusedQkv):
    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


class TwoKeyHeads(Attention):
    """Four heads of 3 for queries, two for keys and values."""

    def setup(self) -> None:
        self.k, self.v = nn.Linear(12, 6), nn.Linear(12, 6)


@tiny("embed 12, q 2, q#2 2, q#3 3, v 3", tokens)
class GroupedQueriesInterleaved(TwoKeyHeads):
    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, 4, 3).transpose(1, 2)
        k, v = (f(x).view(n, length, 2, 3).transpose(1, 2).repeat_interleave(2, dim=1) for f in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 12))


@tiny("embed 12, q 2, q#2 2, q#3 3, v 3", tokens)
class GroupedQueriesExpanded(TwoKeyHeads):
    """As Llama writes it: expand and reshape."""

    def attend(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, 4, 3).transpose(1, 2)
        k, v = (f(x).view(n, length, 2, 3).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t[:, :, None, :, :].expand(n, 2, 2, length, 3).reshape(n, 4, length, 3) for t in (k, v))
        weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)) / math.sqrt(3), -1)
        return self.o(torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(n, length, -1))


@tiny("embed 12, q 2, q#2 2, q#3 3, v 3", tokens)
class GroupedQueriesByFlag(TwoKeyHeads):
    def attend(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@tiny("embed 12, q 3, q#2 4, v 4", tokens)
class MultiQuery(Attention):
    """One head of keys and values for all queries."""

    def setup(self) -> None:
        self.k, self.v = nn.Linear(12, 4), nn.Linear(12, 4)

    def attend(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (3, 4)).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x).unsqueeze(1)
        return self.o(((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


@tiny("embed 12, q 3, q#2 4 mixed, v 4", tokens)
class LinearAttention(Attention):
    """Without softmax over places: features of keys times values first."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = (q @ (k.mT @ v)) / (q @ k.sum(2).unsqueeze(-1))
        return self.o(y.transpose(1, 2).flatten(2))


@tiny("embed 12, q 3, q#2 2, v 4", tokens)
class RotaryAttention(Attention):
    """Positions as rotations: halves of each head are turned into one another."""

    def setup(self) -> None:
        angle = torch.arange(5.0)[:, None] / 10 ** torch.tensor([0.0, 1.0, 0.0, 1.0])
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.o(y.transpose(1, 2).flatten(2))


@tiny("qkv 2, embed 8, qkv#2 4", of(2, 12, 4, 4))
class WindowAttention(nn.Module):
    """Swin: shifted windows of 2x2, a table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Conv2d(12, 8, 1), nn.Linear(8, 24)
        self.o, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.table = nn.Parameter(torch.randn(9, 2))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        between = places[:, :, None] - places[:, None] + 1
        self.register_buffer("index", (between[0] * 3 + between[1]).view(-1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(x, shifts=(-1, -1), dims=(1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = self.o(y.transpose(1, 2).reshape(-1, 4, c))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.head(x + torch.roll(y, shifts=(1, 1), dims=(1, 2)))


@tiny("embed 12, inner 3, inner#2 4, inner#3 4", tokens)
class TorchAttention(Attention):
    def setup(self) -> None:
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True)
        del self.q, self.k, self.v, self.o

    def attend(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


@tiny(
    "embed 12 mixed, layers.layers.0.self_attn 3, layers.layers.0.self_attn#2 4, layers.layers.0.self_attn#3 4, "
    "layers.layers.0.linear1 10, layers.layers.1.self_attn 3, layers.layers.1.self_attn#2 4, "
    "layers.layers.1.self_attn#3 4, layers.layers.1.linear1 10",
    tokens,
)
class EncoderLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.1, batch_first=True, activation="gelu")
        self.embed, self.layers, self.head = nn.Linear(12, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


@tiny(
    "embed 12 mixed, layer.self_attn 3, layer.self_attn#2 4, layer.self_attn#3 4, layer.multihead_attn 3, "
    "layer.multihead_attn#2 4, layer.multihead_attn#3 4, layer.linear1 10",
    lambda: (torch.randn(2, 5, 12), torch.randn(2, 7, 12)),
)
class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.other, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.layer = nn.TransformerDecoderLayer(12, 3, 10, batch_first=True, norm_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x), self.other(memory)))


@tiny("patch 12 mixed, qkv 3, qkv#2 4, up 10", of(2, 3, 8, 8))
class VisionTransformer(nn.Module):
    """Patches, class token, positions, a pre-norm block with layer scale, RMS norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(12), nn.LayerNorm(12), nn.RMSNorm(12)
        self.qkv, self.o = nn.Linear(12, 36, bias=False), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 10), nn.Linear(10, 12)
        self.scale1, self.scale2 = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.scale1 * self.o(y)
        x = x + self.scale2 * self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])
