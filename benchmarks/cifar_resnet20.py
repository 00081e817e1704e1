"""`python -m benchmarks.cifar_resnet20`: NetAdapt on a trained CIFAR ResNet and real images, to half of its MACs.

The dense network gets the same fine-tuning as the pruned one (its steps in every round and the long ones after the
search), because fine-tuning alone raises accuracy on these images. Candidates are ranked on a part of the validation
images; the test split is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import cifar, machine
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune import Budget, FineTune, NetAdaptConfig, NetAdaptResult, netadapt


@dataclass(frozen=True)
class Found:
    """One seed: the sizes, accuracies in percent before and after, and where the seconds went."""

    seed: int
    rounds: int
    trained_candidates: int
    macs_kept: float
    params_kept: float
    dense_validation: float
    tuned_dense_validation: float
    pruned_validation: float
    tuned_dense_test: float
    pruned_test: float
    certified_error: float
    search_seconds: float
    overhead: float
    total_seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every seed, print and write the table."""
    options = read_options(arguments)
    machine.one_thread()
    found, data = measure(options)
    text = report(found, data["machine"], options)
    write(options.out, f"cifar_resnet{options.depth}", text, data)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(
        "cifar_resnet20", __doc__, "depth rate candidates short long train-images search-images device"
    )
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs that remains")
    parser.add_argument("--rounds", type=int, default=-1, help="most rounds; -1: as many as it takes")
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> tuple[list[Found], dict[str, Any]]:
    """Every seed, and the figures as plain data."""
    about, found = machine.describe(), []
    for seed in range(options.seeds):
        found.append(one_seed(options, seed))
        print(f"seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    return found, {"machine": about, "settings": settings, "rows": [asdict(one) for one in found]}


def one_seed(options: argparse.Namespace, seed: int) -> Found:
    """Search, fine-tune both networks for equally many steps, and compare."""
    begun, device = time.perf_counter(), torch.device(options.device)
    data, held_out = cifar.training(device, options.train_images), cifar.validation(device)
    dense, score = cifar.trained(options.depth, device), held_out.accuracy()
    result = search(options, dense, data, held_out, seed)
    pruned, tuned_dense = result.model, copy.deepcopy(dense)
    so_far = len(result.rounds) * options.short
    cifar.fine_tune(pruned, data, options.long, batch=128, peak=0.02, seed=seed)
    cifar.fine_tune(tuned_dense, data, options.long + so_far, batch=128, peak=0.02, seed=seed)
    scored = score(dense), score(tuned_dense), score(pruned)
    final = cifar.test(device).accuracy()
    return Found(
        seed,
        len(result.rounds),
        sum(candidate.trained for one in result.rounds for candidate in one.candidates),
        result.achieved["macs"] / result.start["macs"],
        sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in dense.parameters()),
        *scored,
        final(tuned_dense),
        final(pruned),
        result.certificate.max_error,
        result.timings.total,
        result.timings.overhead,
        time.perf_counter() - begun,
    )


def search(
    options: argparse.Namespace, dense: torch.nn.Module, data: cifar.Images, held_out: cifar.Images, seed: int
) -> NetAdaptResult:
    """NetAdapt itself."""
    config = NetAdaptConfig(
        budget_reduce_rate_init=options.rate,
        budget_reduce_rate_decay=1.0,
        netadapt_max_iter=options.short,
        netadapt_max_rounds=options.rounds,
        netadapt_min_feature_size=2,
        candidates_per_round=options.candidates,
    )
    return netadapt(
        dense,
        Budget("macs", ratio=options.ratio),
        example_inputs=data.images[:1],
        train=FineTune(cifar.Batches(data, 64), lr=0.01),
        evaluate=held_out.first(options.search_images).accuracy(),
        config=config,
        progress=False,
        seed=seed,
    )


def report(found: Sequence[Found], about: dict[str, Any], options: argparse.Namespace) -> str:
    """The Markdown page."""
    header = (
        "seed", "rounds", "trained", "MACs kept", "params kept", "dense, validation", "dense tuned", "pruned",
        "dense tuned, test", "pruned, test", "certified", "overhead", "search s", "all s",
    )  # fmt: skip
    rows = [
        [
            str(one.seed),
            str(one.rounds),
            str(one.trained_candidates),
            f"{one.macs_kept:.1%}",
            f"{one.params_kept:.1%}",
            f"{one.dense_validation:.2f}",
            f"{one.tuned_dense_validation:.2f}",
            f"{one.pruned_validation:.2f}",
            f"{one.tuned_dense_test:.2f}",
            f"{one.pruned_test:.2f}",
            f"{one.certified_error:.0e}",
            f"{one.overhead:.2%}",
            f"{one.search_seconds:.0f}",
            f"{one.total_seconds:.0f}",
        ]
        for one in found
    ]
    lines = [
        f"# NetAdapt on CIFAR ResNet-{options.depth}",
        "",
        f"{machine.sentence(about)}.",
        "",
        f"To {options.ratio:.0%} of the MACs, {options.rate:.0%} a round; {options.candidates} candidates a round, "
        f"trained for {options.short} steps of 64 images and ranked on {options.search_images:,} validation images; "
        f"then {options.long} steps of 128. dense tuned: the dense network after as many steps. Accuracies in percent, "
        "on all 5,000 validation images and once on the 10,000 test images. overhead: share of the search outside "
        "training and evaluation.",
        "",
        *table(header, rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
