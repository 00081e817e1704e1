"""Budgets land: how much of a budget of the MACs a data-free search uses, at 75, 50, 40 and 25 %.

    python -m benchmarks.budgets [--out FOLDER] [NETWORK ...]

Random weights (seeded), batch 1. Each network is searched once: to 75 %, and from there on in the same folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine, report
from benchmarks.options import command_line
from fxprune import Budget, netadapt
from fxprune.torchvision_support import ensure_torchvision

RATIOS = (0.75, 0.5, 0.4, 0.25)


class Attention(nn.Module):
    """Causal attention of heads of 32, from three projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (-1, 32)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Attention and a feed-forward network, each behind a layer normalisation and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.attention, self.second = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.feed_forward(self.second(x))


class Decoder(nn.Module):
    """A language model of four blocks over tokens (n, length): learned positions, logits of each next token."""

    def __init__(self, tokens: int = 500, width: int = 128, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, width), nn.Parameter(torch.randn(length, width) / 50)
        self.blocks = nn.Sequential(*(DecoderBlock(width) for _ in range(4)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.tokens(tokens) + self.positions[: tokens.shape[1]])))


class Block(nn.Sequential):
    """Two 3x3 convolutions with group normalisation."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """A UNet of three levels with group normalisation, for (n, 3, h, w) of sizes that divide by 4."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second, self.middle = Block(3, width), Block(width, 2 * width), Block(2 * width, 4 * width)
        self.up_second, self.back_second = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), Block(4 * width, 2 * width)
        self.up_first, self.back_first = nn.ConvTranspose2d(2 * width, width, 2, 2), Block(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(nn.functional.max_pool2d(first, 2))
        middle = self.middle(nn.functional.max_pool2d(second, 2))
        second = self.back_second(torch.cat([self.up_second(middle), second], 1))
        return self.head(self.back_first(torch.cat([self.up_first(second), first], 1)))


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return make


def _small_vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=8, num_layers=6, num_heads=6, hidden_dim=192, mlp_dim=768, num_classes=100
    )


def _images(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(1, 3, size, size)


def _tokens() -> Tensor:
    return torch.randint(500, (1, 64))


TORCHVISION = (
    "shufflenet_v2_x0_5", "efficientnet_b0", "convnext_tiny",
    "mobilenet_v3_small", "resnet18", "regnet_y_400mf", "densenet121",
)  # fmt: skip
# A network, and the inputs that its costs are counted for.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    **{name: (_torchvision(name), _images(64)) for name in TORCHVISION},
    "small_vit": (_small_vit, _images(64)),
    "unet_groupnorm": (UNet, _images(32)),
    "small_decoder": (Decoder, _tokens),
}


def main() -> None:
    parser = command_line("budgets", __doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    ensure_torchvision()
    machine.one_thread()
    rows = [row for name in options.networks for row in landed(name)]
    header = ("network", *(f"{ratio:.0%}" for ratio in RATIOS))
    cells = ([name, *(f"{row['used']:.2%}" for row in rows if row["network"] == name)] for name in options.networks)
    text = "\n".join(["# Share of a budget of the MACs that is used", "", *report.table(header, cells)])
    report.write(options.out, "budgets", text, {"machine": machine.describe(), "rows": rows})


def landed(name: str) -> Iterator[dict[str, Any]]:
    """A row a budget: the share of it that the network uses, at most 1, and the rounds so far."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), inputs()
    with tempfile.TemporaryDirectory() as folder:
        for ratio in RATIOS:
            result = netadapt(
                model, Budget("macs", ratio=ratio), example_inputs=x, workdir=folder, progress=False,
                config={"keep_rounds": 1},
            )  # fmt: skip
            used = result.achieved["macs"] / (ratio * result.start["macs"])
            print(f"{name}, {ratio:.0%}: {used:.2%} used after {len(result.rounds)} rounds", flush=True)
            yield {"network": name, "ratio": ratio, "met": result.met, "used": used, "rounds": len(result.rounds)}


if __name__ == "__main__":
    main()
