"""`python -m benchmarks.accuracy_by_data`: a network pruned by data, before and after a few distilled steps.

A trained CIFAR ResNet is pruned by `netadapt(..., calibration=...)` with unlabelled training images: no gradient step
is made. From there it is distilled from the dense network, averaged over an image and its neighbours
(`cifar.Averaged`), for each number of steps of the command line, every time from the same start. Accuracy is measured
on the 5,000 validation images; the test images are looked at once, when everything is done. Beside it, distilled alike,
each with its norms estimated anew: "sliced", the same plan without compensation; Torch-Pruning by group norms and by
Taylor, global, the residual streams held back by hand.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cifar, machine
from benchmarks.checks import count_flops
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune import Budget, netadapt
from fxprune.training.distillation import distil
from passes import apply_plan
from passes.repair.batch_norms import reestimated
from passes.statistics import Batch

PEERS = ("torch-pruning norm", "torch-pruning taylor")


@dataclass(frozen=True)
class Row:
    """Accuracies in percent of one network; `steps` are all gradient steps that it has had."""

    start: str
    ratio: float
    seed: int
    steps: int
    macs_kept: float
    validation: float
    test: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every ratio, seed and number of steps; print and write the table."""
    options = read_options(arguments)
    machine.one_thread()
    rows, data = measure(options)
    text = report(rows, data, options)
    write(options.out, f"accuracy_by_data_{options.depth}", text, data)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("accuracy_by_data", __doc__, "depth")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.35], help="shares of the MACs kept")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 30, 90, 270, 2000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--calibration", type=int, default=4000, help="training images, without labels")
    parser.add_argument("--images", type=int, default=cifar.TRAINING, help="training images for the steps")
    parser.add_argument("--peak", type=float, default=0.02, help="peak of the learning rate")
    starts = ("data", "sliced", *PEERS)
    parser.add_argument("--starts", nargs="+", choices=starts, default=["data"], help="how it is pruned")
    parser.add_argument("--no-test", action="store_true", help="leave the test images alone")
    parser.add_argument("--journals", type=Path, help="folder of the searches, which are then not made twice")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """All networks first, then the test images, once."""
    device = torch.device("cpu")
    data, held = cifar.training(device, options.images), cifar.validation(device)
    dense = cifar.trained(options.depth, device)
    teacher = cifar.Averaged(dense)
    made: list[tuple[Row, nn.Module]] = []
    for seed in options.seeds:
        drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: options.calibration]
        images = data.images[drawn]
        batches = [images[i : i + 250] for i in range(0, len(images), 250)]
        for ratio in options.ratios:
            begun = time.perf_counter()
            result = netadapt(
                dense, Budget("macs", ratio=ratio), example_inputs=images[:2], calibration=batches, seed=seed,
                progress=False, config={"netadapt_min_feature_size": 1}, workdir=journal(options, ratio, seed),
            )  # fmt: skip
            pruned_in = time.perf_counter() - begun
            for start in options.starts:
                network = result.model if start == "data" else apply_plan(dense, result.plan)
                if start in PEERS:
                    network = by_torch_pruning(dense, data.first(256), ratio, start)
                if start != "data":
                    network = reestimated(network, [Batch((b,)) for b in batches[:4]])
                kept = count_flops(network, images[:1]) / count_flops(dense, images[:1])
                for steps in options.steps:
                    begun = time.perf_counter()
                    student = copy.deepcopy(network).to(memory_format=torch.channels_last)
                    torch.manual_seed(seed)
                    distil(
                        student, teacher, cifar.Batches(data, 128), steps, lr=options.peak, seed=seed,
                        loss=nn.functional.cross_entropy,
                    )  # fmt: skip
                    seconds = time.perf_counter() - begun + pruned_in
                    found = held.accuracy()(student.eval())
                    made.append((Row(start, ratio, seed, steps, kept, found, float("nan"), seconds), student))
                    print(f"{start} {ratio:g} seed {seed}, {steps} steps: validation {found:.2f}", flush=True)
    rows = [row for row, _ in made]
    if not options.no_test:
        score = cifar.test(device).accuracy()
        rows = [Row(**{**asdict(row), "test": score(network)}) for row, network in made]
    about = {"machine": machine.describe(), "depth": options.depth, "rows": [asdict(row) for row in rows]}
    return rows, about


def journal(options: argparse.Namespace, ratio: float, seed: int) -> Path | None:
    """The folder of one search, or None where none is kept."""
    if options.journals is None:
        return None
    return Path(options.journals / f"resnet{options.depth}-{ratio:g}-seed{seed}-{options.calibration}")


def by_torch_pruning(dense: nn.Module, data: cifar.Images, ratio: float, name: str) -> nn.Module:
    """Torch-Pruning's MetaPruner to a share of the MACs, global, inside the blocks; for Taylor with labels."""
    import torch_pruning as tp

    network, example = copy.deepcopy(dense), data.images[:1]
    streams = [layer for path, layer in network.named_modules() if path.endswith("conv2") or path == "conv1"]
    taylor = name == "torch-pruning taylor"
    pruner = tp.pruner.MetaPruner(
        network, example,
        tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1.0, global_pruning=True, iterative_steps=200, max_pruning_ratio=0.9,
        ignored_layers=[network.linear, *streams],
    )  # fmt: skip
    whole = count_flops(network, example)
    while count_flops(network, example) > ratio * whole and pruner.current_step < 200:
        if taylor:
            network.zero_grad()
            nn.functional.cross_entropy(network(data.images), data.labels).backward()
        pruner.step()
    network.zero_grad(set_to_none=True)
    return network.eval()


def report(rows: Sequence[Row], about: dict[str, Any], options: argparse.Namespace) -> str:
    """The table as Markdown."""
    head = ["start", "MACs kept", "seed", "gradient steps in all", "validation", "test", "seconds"]
    cells = [
        [r.start, f"{r.macs_kept:.1%}", str(r.seed), str(r.steps), f"{r.validation:.2f}", f"{r.test:.2f}",
         f"{r.seconds:.0f}"]
        for r in rows
    ]  # fmt: skip
    lines = [f"ResNet-{options.depth}, {options.calibration} unlabelled images", "", *table(head, cells), ""]
    return "\n".join([*lines, machine.sentence(about["machine"]), ""])


if __name__ == "__main__":
    sys.exit(main())
