"""`pytest benchmarks --benchmark-only`: seconds of the compiler's steps on ResNet-50 and DenseNet-121.

Targets on one idle core: analysis (capture, couple, cost) in 1 s and 2 s, planning a whole round in 10 ms. They are
asserted on the least of the runs, in processor seconds, which other work on the machine hardly lengthens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import passes
from benchmarks.networks import build, networks
from fxprune import NetAdaptConfig
from fxprune.criteria.weight_norms import importance
from fxprune.problem.width_grids import Grid, make_grids
from fxprune.resources.kinds import counted
from fxprune.search.proposals import propose

pytestmark = pytest.mark.benchmark(timer=time.process_time)

ANALYSIS_S = {"resnet50": 1.0, "densenet121": 2.0}
ROUND_S = 0.010


@dataclass(frozen=True)
class Prepared:
    """A network with everything that a step may start from."""

    name: str
    model: nn.Module
    example: torch.Tensor
    gm: torch.fx.GraphModule
    coupling: passes.Coupling
    cost: passes.Cost
    plan: passes.Plan


@pytest.fixture(scope="module", params=list(ANALYSIS_S))
def network(request: pytest.FixtureRequest) -> Prepared:
    found = next(n for n in networks() if n.name == request.param)
    model, example = build(found), torch.randn(found.shape)
    gm = passes.capture(model, example)
    coupling = passes.couple(gm, example)
    random = np.random.default_rng(0)
    keep = {g.name: np.sort(random.permutation(g.size)[: g.size - g.size // 2]).tolist() for g in coupling.groups}
    return Prepared(request.param, model, example, gm, coupling, passes.cost(coupling), coupling.plan(keep))


def least(benchmark: Any, function: Any, rounds: int) -> float:
    """Run as a benchmark; the least seconds of a run, 0 where benchmarks are switched off."""
    benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
    return benchmark.stats.stats.min if benchmark.stats else 0.0


def analysis(network: Prepared) -> int:
    gm = passes.capture(network.model, network.example)
    costs = passes.cost(passes.couple(gm, network.example))
    return costs.macs() + costs.params()


def test_analysis(benchmark: Any, network: Prepared) -> None:
    benchmark.group = "analysis: capture, couple, cost"
    assert least(benchmark, lambda: analysis(network), 5) <= ANALYSIS_S[network.name]


def test_plan_a_round(benchmark: Any, network: Prepared) -> None:
    benchmark.group = "planning a round: a width for every group"
    resource = counted(network.cost, "macs")
    widths = network.coupling.widths
    grids: dict[str, Grid] = make_grids(network.gm, network.coupling, NetAdaptConfig(), {})
    target = {"macs": 0.975 * network.cost.macs()}
    proposals = propose([resource], widths, target, grids)
    assert len(proposals) == len(grids) and any(p.meets for p in proposals)
    assert least(benchmark, lambda: propose([resource], widths, target, grids), 20) <= ROUND_S


def test_prune(benchmark: Any, network: Prepared) -> None:
    benchmark.group = "prune"
    least(benchmark, lambda: passes.PruneChannels(network.plan)(network.gm), 5)


def test_verify(benchmark: Any, network: Prepared) -> None:
    benchmark.group = "verify in float64, two batch sizes"
    pruned = passes.PruneChannels(network.plan)(network.gm).graph_module
    least(benchmark, lambda: passes.verify(network.gm, pruned, network.plan, network.example), 3)


def test_importance(benchmark: Any, network: Prepared) -> None:
    benchmark.group = "importance of every unit"
    least(benchmark, lambda: [importance(network.gm, group) for group in network.coupling.groups], 5)
