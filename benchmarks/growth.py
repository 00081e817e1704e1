"""`python -m benchmarks.growth`: how the analysis grows with depth, and that its memory does not grow with the weights.

Depth: seconds of capture, couple and cost over the number of graph nodes, for ResNet-18 to -152 and DenseNet-121 to
-201; linear growth is a constant number of milliseconds a node. Width: one small network, its channels doubled again
and again; a process each, and the memory that the analysis adds beside the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import machine
from benchmarks.checks import analyse
from benchmarks.networks import build, networks
from benchmarks.options import command_line
from benchmarks.processes import each
from benchmarks.report import table, write
from benchmarks.zoo import warm_up

SERIES = {
    "resnet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "densenet": ("densenet121", "densenet169", "densenet201"),
}
WIDTHS = (64, 256, 1024, 2048)
STEPS = ("capture", "couple", "cost", "prune")


@dataclass(frozen=True)
class Depth:
    """One network of a series; seconds are the least of the runs."""

    series: str
    name: str
    nodes: int
    groups: int
    seconds: dict[str, float]

    @property
    def analysis(self) -> float:
        return sum(self.seconds[step] for step in ("capture", "couple", "cost"))


@dataclass(frozen=True)
class Width:
    """One width: bytes of the weights, and by how much the analysis raised the peak of the process."""

    channels: int
    weights_mib: float
    added_mib: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both curves."""
    parser = command_line("growth", __doc__, "repeats", repeats=5)
    options = parser.parse_args(arguments)
    machine.one_thread()
    depths, widths, data = measure(options.repeats)
    text = report(depths, widths, data)
    write(options.out, "growth", text, data)
    return 0


def measure(repeats: int) -> tuple[list[Depth], list[Width], dict[str, Any]]:
    """Both curves, and all figures as plain data."""
    about = machine.describe()
    warm_up()
    depths = [measure_depth(series, name, repeats) for series, names in SERIES.items() for name in names]
    found = each(measure_width, WIDTHS, jobs=1, seconds=300, memory_gib=12)
    widths = [width for _, width, why in found if not why]
    data = {
        "machine": about,
        "exponents": {series: exponent([d for d in depths if d.series == series]) for series in SERIES},
        "depths": [asdict(depth) | {"analysis": depth.analysis} for depth in depths],
        "widths": [asdict(width) for width in widths],
    }
    return depths, widths, data


def measure_depth(series: str, name: str, repeats: int) -> Depth:
    network = next(network for network in networks() if network.name == name)
    model, example = build(network, meta=True), torch.empty(network.shape, device="meta")
    least: dict[str, float] = {}
    for _ in range(repeats):
        seconds = machine.Seconds()
        found = analyse(model, example, seconds)
        least = {step: min(spent, least.get(step, spent)) for step, spent in seconds.items()}
    return Depth(series, name, len(found.gm.graph.nodes), len(found.coupling.groups), least)


def exponent(depths: Sequence[Depth]) -> float:
    """The slope of log seconds over log nodes: 1 is linear growth."""
    nodes, seconds = np.log([d.nodes for d in depths]), np.log([d.analysis for d in depths])
    return float(np.polyfit(nodes, seconds, 1)[0])


def measure_width(channels: int) -> Width:
    """Capture, couple and cost of eight convolutions with so many channels, in a process of its own."""
    import passes

    layers = [
        layer for _ in range(8) for layer in (nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())
    ]
    model, example = nn.Sequential(*layers).eval(), torch.empty(1, channels, 32, 32, device="meta")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before, seconds = machine.peak_mib(), machine.Seconds()
    with seconds("analysis"):
        costs = passes.cost(passes.couple(passes.capture(model, example), example))
        costs.macs(), costs.params(), costs.memory()
    return Width(channels, weights / 2**20, machine.peak_mib() - before, seconds["analysis"])


def report(depths: Sequence[Depth], widths: Sequence[Width], data: dict[str, Any]) -> str:
    """The Markdown page."""
    rows = [
        [
            one.name,
            str(one.nodes),
            str(one.groups),
            *(f"{1000 * one.seconds[step]:.0f}" for step in STEPS),
            f"{1000 * one.analysis:.0f}",
            f"{1000 * one.analysis / one.nodes:.2f}",
            f"{1000 * one.analysis / one.nodes / per_node(depths, one.series):.2f}",
        ]
        for one in depths
    ]
    exponents = ", ".join(f"{series} {value:.2f}" for series, value in data["exponents"].items())
    header = (
        "network",
        "nodes",
        "groups",
        *(f"{step} ms" for step in STEPS),
        "analysis ms",
        "ms a node",
        "to the first",
    )
    breadth = [
        [str(w.channels), f"{w.weights_mib:.0f}", f"{w.added_mib:.1f}", f"{1000 * w.seconds:.0f}"] for w in widths
    ]
    return "\n".join(
        [
            "# How the analysis grows",
            "",
            f"{machine.sentence(data['machine'])}.",
            "",
            " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
            "",
            f"Exponent of the growth with the number of nodes (1 is linear): **{exponents}**.",
            "",
            *table(header, rows),
            "",
            *table(("channels", "weights MiB", "added by the analysis MiB", "analysis ms"), breadth),
        ]
    )


def per_node(depths: Sequence[Depth], series: str) -> float:
    """Milliseconds a node of the shallowest network of a series."""
    first = next(depth for depth in depths if depth.series == series)
    return 1000 * first.analysis / first.nodes


if __name__ == "__main__":
    sys.exit(main())
