"""A small network and a device made of formulas, for the tests of latency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.latency.backends.protocol import Profile
from fxprune.latency.device import Setting
from fxprune.latency.timing import Pace, Reference, Timing, timing

INPUT = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolutions with a shortcut and two layers of one shape, so that two units share a key."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.wide = nn.Conv2d(64, 96, 1)
        self.back = nn.Conv2d(96, 64, 1)
        self.again, self.home = nn.Conv2d(64, 80, 1), nn.Conv2d(80, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.wide(x).relu())
        x = x + self.home(self.again(x).relu())
        return self.head(x.mean((2, 3)))


def stairs(width: int, step: int) -> int:
    return math.ceil(width / step) * step


def node_ms(gm: fx.GraphModule, node: fx.Node, step: int) -> float:
    """What this device takes for a node: products of widths in stairs, and a little for everything else."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return 0.02 + 2e-5 * kernel * stairs(module.in_channels, step) * stairs(module.out_channels, step)
    if isinstance(module, nn.Linear):
        return 0.01 + 1e-5 * module.in_features * module.out_features
    return 0.001


class FormulaDevice:
    """A backend whose costs are known: sums of `node_ms`, with a little noise, and an overhead for each run."""

    def __init__(self, step: int = 1, noise: float = 0.005, overhead_ms: float = 0.05, in_situ: bool = True) -> None:
        self.setting = Setting("formula", "1", 1, {"processor": "paper"})
        self.in_situ, self.step, self.noise, self.overhead_ms = in_situ, step, noise, overhead_ms
        self.rng = np.random.default_rng(0)
        self.measured = 0
        self.fail_after: int | None = None

    def true_ms(self, gm: fx.GraphModule) -> float:
        return self.overhead_ms + sum(node_ms(gm, node, self.step) for node in gm.graph.nodes)

    def _count(self) -> None:
        if self.fail_after is not None and self.measured >= self.fail_after:
            raise KeyboardInterrupt
        self.measured += 1

    def prepare(self, gm: fx.GraphModule, example_inputs: Any) -> Any:
        return lambda: None

    def time(
        self, gm: fx.GraphModule, example_inputs: Any, reference: Reference | None = None, repeats: int = 15
    ) -> Timing:
        self._count()
        ms = self.true_ms(gm) * (1 + self.noise * self.rng.standard_normal())
        return Timing(ms, ms * (1 - self.noise), ms * (1 + self.noise), repeats)

    def profile(self, gm: fx.GraphModule, example_inputs: Any, reference: Reference | None, repeats: int) -> Profile:
        self._count()
        nodes = tuple(node.name for node in gm.graph.nodes)
        ms = np.array([node_ms(gm, node, self.step) for node in gm.graph.nodes])
        runs = ms * (1 + self.noise * self.rng.standard_normal((repeats, len(nodes))))
        around = reference.quiet_ms if reference is not None else 1.0
        whole = timing((self.overhead_ms + runs.sum(1)) / around)
        return Profile(nodes, runs, Pace(runs.sum(1), np.full(repeats, around), around), whole)
