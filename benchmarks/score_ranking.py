"""`python -m benchmarks.score_ranking`: how well a candidate's score before training predicts its loss after it.

Random widths of a CIFAR ResNet, all at one share of the MACs, units chosen by `obs`. Each network is scored as a search
could score it without training: sliced, with its norms estimated anew, compensated in closed form, and compensated with
new norms, by the divergence of its outputs from the dense network's on held-out images. Then it is distilled from the
compensated start, and the divergence on the 5,000 validation images is what the scores should predict: Spearman's rank
correlation over the networks, the mean of the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import cifar, machine
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune.criteria.registry import rank
from fxprune.criteria.weight_norms import keep_units
from fxprune.training.distillation import distil
from passes import Coupling, Statistics, apply_plan, compensate, cost, couple, observe
from passes.repair.batch_norms import reestimated
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of

SCORES = ("sliced", "norms", "closed form", "closed form, norms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every seed; print and write the table."""
    options = read_options(arguments)
    machine.one_thread()
    device = torch.device("cpu")
    data, validation = cifar.training(device), cifar.validation(device)
    dense = cifar.trained(options.depth, device)
    judged = [Batch((part,)) for part in validation.images.split(500)]
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: options.calibration]
        batches = [Batch((part,)) for part in data.images[drawn].split(250)]
        cut = max(1, len(batches) * 4 // 5)
        rows += one_seed(dense, data, batches[:cut], batches[cut:], judged, options, seed)
    found = {name: float(np.mean([rank_correlation(rows, name, seed) for seed in options.seeds])) for name in SCORES}
    head = ["score", f"rank correlation with the divergence after {options.steps} steps"]
    text = "\n".join(
        [
            f"ResNet-{options.depth}, {options.vectors} networks of {options.ratio:.0%} of the MACs, "
            f"{len(options.seeds)} seeds", "", *table(head, [[name, f"{value:.2f}"] for name, value in found.items()]),
            "",
        ]
    )  # fmt: skip
    write(options.out, "score_ranking", text, {"machine": machine.describe(), "rows": rows, "correlation": found})
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("score_ranking", __doc__, "depth")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs kept")
    parser.add_argument("--vectors", type=int, default=30, help="networks a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="distilled steps of 128 images")
    parser.add_argument("--calibration", type=int, default=1250, help="training images, without labels")
    return parser.parse_args(arguments)


def one_seed(
    dense: nn.Module, data: cifar.Images, fitted: list[Batch], held: list[Batch], judged: list[Batch],
    options: argparse.Namespace, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The scores and the outcome of each network."""
    coupling = couple(dense, fitted[0].args[0][:1])
    statistics = observe(dense, coupling, fitted, seed=seed)
    ranks = {g.name: rank("obs", dense, g, statistics, seed=seed).scores for g in coupling.groups}
    expected, wanted = outputs_of(dense, held), outputs_of(dense, judged)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(options.vectors):
        widths = random_widths(coupling, options.ratio, rng)
        plan = coupling.plan({name: keep_units(ranks[name], width) for name, width in widths.items()})
        networks = made(dense, plan, statistics, fitted)
        row: dict[str, Any] = {"seed": seed, "number": number, "widths": widths}
        row.update({name: divergence(network, held, expected) for name, network in networks.items()})
        student = distil(networks["closed form, norms"], dense, cifar.Batches(data, 128), options.steps, seed=seed)
        row["after"] = divergence(student.eval(), judged, wanted)
        print({key: value for key, value in row.items() if key != "widths"}, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def made(dense: nn.Module, plan: Any, statistics: Statistics, fitted: list[Batch]) -> dict[str, nn.Module]:
    """The network of a plan, without training, in each of the ways that are scored."""
    sliced = apply_plan(dense, plan)
    closed = compensate(sliced, statistics, plan, dense)
    networks = (sliced, reestimated(sliced, fitted), closed, reestimated(closed, fitted))
    return dict(zip(SCORES, networks, strict=True))


def random_widths(coupling: Coupling, ratio: float, rng: np.random.Generator) -> dict[str, int]:
    """Widths whose shares are drawn for each group, scaled together to the share of the MACs."""
    macs = cost(coupling).resource("macs")
    whole, shares = macs(None), {group.name: rng.uniform(0.3, 1.0) for group in coupling.groups}

    def at(scale: float) -> Mapping[str, int]:
        return {
            group.name: int(np.clip(round(group.size * shares[group.name] * scale), 1, group.size))
            for group in coupling.groups
        }

    low, high = 0.05, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(at(middle)) <= ratio * whole else (low, middle)
    return dict(at(low))


def rank_correlation(rows: Sequence[Mapping[str, Any]], name: str, seed: int) -> float:
    """Of a score with the outcome, over the networks of one seed."""
    from scipy.stats import spearmanr

    mine = [row for row in rows if row["seed"] == seed]
    return float(spearmanr([row[name] for row in mine], [row["after"] for row in mine]).statistic)


if __name__ == "__main__":
    sys.exit(main())
