"""`python -m benchmarks.depth`: half of the milliseconds, with residual blocks that may go and with widths alone.

Both searches get the same calibration images, from training data only, the same latency table and the same settings
but for `depth`. What comes out is timed in turns, and judged by how far its outputs are from the dense network's on
images that neither search saw; the accuracy on the test split is taken once, at the end, and decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import machine
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune import Budget, netadapt
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of


@dataclass(frozen=True)
class Task:
    """A trained network, an example, calibration batches, batches that judge, and what gives the test accuracy."""

    model: nn.Module
    example: Tensor
    calibration: list[Tensor]
    judging: list[Batch]
    accuracy: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Found:
    """One search: what was allowed and removed, and what came out. ms: of the network, measured beside the others."""

    network: str
    depth: bool
    blocks_removed: int
    ms: float
    ms_kept: float
    macs_kept: float
    divergence: float
    test_accuracy: float
    dense_test_accuracy: float
    certified_error: float
    seconds: float


def resnet56(options: argparse.Namespace) -> Task:
    """The shared CIFAR-10 ResNet-56; calibrated on its first training images, judged on validation images."""
    from benchmarks import cifar

    device = torch.device("cpu")
    data, held = cifar.training(device, options.images).images, cifar.validation(device).first(options.judging).images
    test = cifar.test(device).accuracy()
    return Task(cifar.trained(56, device), data[: options.batch], list(data.split(128)), _batches(held), test)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A pre-norm vision transformer of 12 blocks for the 8 by 8 digits of scikit-learn, in patches of 2 by 2."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def vit12(options: argparse.Namespace) -> Task:
    """A ViT of 12 blocks, trained here on two thirds of the digits; the last third is the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    torch.manual_seed(0)
    order = torch.randperm(len(data.target))
    images = torch.from_numpy(data.images).float()[order, None] / 8 - 1
    labels = torch.from_numpy(data.target)[order]
    fitted, judged, model = images[:1000], images[1000:1200], ViT()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps)
    for _ in range(options.steps):
        chosen = torch.randint(0, 1000, (64,))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(fitted[chosen]), labels[:1000][chosen]).backward()
        optimizer.step()
        cycle.step()
    model.eval()

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((network(images[1200:]).argmax(1) == labels[1200:]).float().mean())

    return Task(model, fitted[: options.batch], list(fitted.split(100)), _batches(judged), accuracy)


NETWORKS: dict[str, Callable[[argparse.Namespace], Task]] = {"resnet56": resnet56, "vit12": vit12}


def _batches(images: Tensor) -> list[Batch]:
    return [Batch((part,), {}) for part in images.split(100)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the searches, print and write the table."""
    parser = command_line("depth", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the milliseconds that remains")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--batch", type=int, default=8, help="images a call, for the latency")
    parser.add_argument("--images", type=int, default=1024, help="calibration images of ResNet-56")
    parser.add_argument("--judging", type=int, default=1000, help="images of ResNet-56 that judge")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the ViT")
    parser.add_argument("--refine", type=int, default=1)
    options = parser.parse_args(arguments)
    machine.one_thread()
    found = [one for name in options.networks for one in compare(options, name)]
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    data = {"machine": machine.describe(), "settings": settings, "rows": [asdict(one) for one in found]}
    text = report(found, data["machine"], options)
    write(options.out, "depth", text, data)
    return 0


def compare(options: argparse.Namespace, name: str) -> list[Found]:
    """Both searches on one network."""
    task = NETWORKS[name](options)
    expected, made = outputs_of(task.model, task.judging), []
    with tempfile.TemporaryDirectory() as folder:
        latency = {"backend": options.backend, "table": str(Path(folder) / "table.json")}
        for depth in (False, True):
            begun = time.perf_counter()
            config = {"depth": depth, "refine": options.refine, "latency": latency}
            budget = Budget("latency", ratio=options.ratio)
            result = netadapt(
                task.model, budget, example_inputs=task.example, form="graph", calibration=task.calibration,
                config=config, progress=False,
            )  # fmt: skip
            made.append((depth, result, time.perf_counter() - begun))
            print(f"{name}, depth {depth}: {result}", file=sys.stderr, flush=True)
    resource: Any = made[0][1].problem.resources[0]
    times = [[resource.measure(result.model, task.example) for _, result, _ in made] for _ in range(5)]
    rows = []
    for number, (depth, result, seconds) in enumerate(made):
        ms = sorted(one[number] for one in times)[len(times) // 2]
        rows.append(
            Found(
                name,
                depth,
                len(result.plan.removed_blocks),
                ms,
                ms / result.start["latency"],
                _macs(result),
                divergence(result.model, task.judging, expected),
                task.accuracy(result.model),
                task.accuracy(task.model),
                result.certificate.max_error,
                seconds,
            )
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _macs(result: Any) -> float:
    from passes import cost

    costs = cost(result.coupling)
    return costs.macs(result.plan.widths) / costs.macs()


def report(found: Sequence[Found], about: dict[str, Any], options: argparse.Namespace) -> str:
    """The Markdown page."""
    header = ("network", "blocks may go", "went", "ms", "of dense", "MACs", "divergence", "test", "dense test", "s")
    rows = [
        [
            one.network,
            "yes" if one.depth else "no",
            str(one.blocks_removed),
            f"{one.ms:.3f}",
            f"{one.ms_kept:.1%}",
            f"{one.macs_kept:.1%}",
            f"{one.divergence:.4f}",
            f"{one.test_accuracy:.2f}",
            f"{one.dense_test_accuracy:.2f}",
            f"{one.seconds:.0f}",
        ]
        for one in found
    ]
    return "\n".join(
        [
            "# Depth beside width, at the same milliseconds",
            "",
            f"{machine.sentence(about)}.",
            "",
            f"To {options.ratio:.0%} of the latency ({options.backend}, {options.batch} images a call), with "
            "calibration images from training data and no training. ms: of what came out, median of five "
            "measurements in turns. divergence: from the dense outputs, on images that no search saw. Accuracies in "
            "percent, once.",
            "",
            *table(header, rows),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
