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


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (_torchvision(name), 64) for name in ("shufflenet_v2_x0_5", "efficientnet_b0", "convnext_tiny")},
    "small_vit": (_small_vit, 64),
    "unet_groupnorm": (UNet, 32),
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
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, 3, size, size)
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
