"""`python -m benchmarks.accuracy`: accuracy at the same MACs on real data: NetAdapt, simpler strategies, and a peer.

A trained CIFAR ResNet is pruned to each budget by fxprune's three strategies (netadapt: a group a round, chosen by
trained candidates; knapsack and uniform: one joint plan a round) and by Torch-Pruning's group-norm magnitude: local,
global, and global inside the blocks alone, since it prunes the padded shortcuts of these networks to something else
than the masked network (`benchmarks.peers` measures that). The network that comes out has had equally many fine-tuning
steps in every case, those between the rounds and the long ones at the end taken together, and so has the dense one.
(NetAdapt also trains the candidates that it does not choose; the table says how many.) Torch-Pruning prunes in as many
rounds as fxprune, with the same steps between them. Accuracy is measured on the 5,000 validation images and, once
everything is trained, on the test images.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks import cifar, machine
from benchmarks.checks import count_flops
from benchmarks.options import command_line
from benchmarks.report import table, write
from fxprune import Budget, FineTune, NetAdaptConfig, netadapt


@dataclass(frozen=True)
class Result:
    """One network: accuracies in percent, the share of MACs and parameters it keeps, steps that it was trained for.

    searched: steps spent on candidates, chosen or not.
    """

    method: str
    ratio: float
    seed: int
    macs_kept: float
    params_kept: float
    validation: float
    test: float
    steps: int
    searched: int
    seconds: float


@dataclass(frozen=True)
class Setting:
    """What all methods share: data, the trained network, and the options of the command line."""

    data: cifar.Images
    held_out: cifar.Images
    dense: nn.Module
    options: argparse.Namespace

    @property
    def example(self) -> torch.Tensor:
        return self.data.images[:1]

    def config(self, **changes: Any) -> NetAdaptConfig:
        options = self.options
        return NetAdaptConfig(
            budget_reduce_rate_init=options.rate,
            budget_reduce_rate_decay=1.0,
            netadapt_max_iter=options.short,
            netadapt_min_feature_size=2,
        ).replace(**changes)

    @property
    def train(self) -> FineTune:
        return FineTune(cifar.Batches(self.data, self.options.batch), lr=0.01)


@dataclass(frozen=True)
class Pruned:
    """What a method hands over: the network, the steps that it has had, and those of all candidates."""

    network: nn.Module
    steps: int
    searched: int


Method = Callable[[Setting, float, int], Pruned]


def main(arguments: Sequence[str] | None = None) -> int:
    """Every method at every budget with every seed."""
    options = read_options(arguments)
    machine.one_thread()
    results, data = measure(options)
    text = report(results, data["machine"], options)
    write(options.out, "accuracy", text, data)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("accuracy", __doc__, "depth rate candidates short long train-images search-images device")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5], help="shares of the MACs that remain")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images of a short step; long ones take twice as many")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> tuple[list[Result], dict[str, Any]]:
    """All results, and the figures as plain data."""
    about, device = machine.describe(), torch.device(options.device)
    data, held_out = cifar.training(device, options.train_images), cifar.validation(device)
    setting = Setting(data, held_out, cifar.trained(options.depth, device), options)
    finished: list[tuple[Result, nn.Module]] = []
    for ratio in options.ratios:
        for seed in range(options.seeds):
            for method in options.methods:
                finished.append(one(setting, method, ratio, seed))
                print(finished[-1][0], file=sys.stderr, flush=True)
    final = cifar.test(device).accuracy()
    results = [replace(result, test=final(network)) for result, network in finished]
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    return results, {"machine": about, "settings": settings, "rows": [asdict(result) for result in results]}


def one(setting: Setting, method: str, ratio: float, seed: int) -> tuple[Result, nn.Module]:
    """Prune and fine-tune once; the test accuracy is filled in when everything is done."""
    begun, options = time.perf_counter(), setting.options
    pruned = METHODS[method](setting, ratio, seed)
    network, steps = pruned.network, options.long + rounds_to(ratio, options.rate) * options.short - pruned.steps
    cifar.fine_tune(network, setting.data, steps, batch=2 * options.batch, peak=0.02, seed=seed)
    macs, dense_macs = (count_flops(net, setting.example) for net in (network, setting.dense))
    params, dense_params = (sum(p.numel() for p in net.parameters()) for net in (network, setting.dense))
    result = Result(
        method,
        ratio,
        seed,
        macs / dense_macs,
        params / dense_params,
        setting.held_out.accuracy()(network),
        float("nan"),
        pruned.steps + steps,
        pruned.searched,
        time.perf_counter() - begun,
    )
    return result, network


def rounds_to(ratio: float, rate: float) -> int:
    """How many rounds lead to `ratio` where each removes `rate` of what is left."""
    rounds, left = 0, 1.0
    while left > ratio:
        rounds, left = rounds + 1, left * (1 - rate)
    return rounds


def dense(setting: Setting, ratio: float, seed: int) -> Pruned:
    return Pruned(copy.deepcopy(setting.dense), 0, 0)


def by_strategy(strategy: str) -> Method:
    """fxprune with one of its strategies."""

    def prune(setting: Setting, ratio: float, seed: int) -> Pruned:
        options = setting.options
        result = netadapt(
            setting.dense,
            Budget("macs", ratio=ratio),
            example_inputs=setting.example,
            train=setting.train,
            evaluate=setting.held_out.first(options.search_images).accuracy(),
            config=setting.config(strategy=strategy, candidates_per_round=options.candidates),
            progress=False,
            seed=seed,
        )
        trained = sum(candidate.trained for round in result.rounds for candidate in round.candidates)
        return Pruned(result.model, len(result.rounds) * options.short, trained * options.short)

    return prune


def by_torch_pruning(global_pruning: bool, inside: bool = False) -> Method:
    """Torch-Pruning's GroupNormPruner with group magnitude, in rounds; each removes units until its target is met.

    inside: the residual streams are left alone.
    """

    def prune(setting: Setting, ratio: float, seed: int) -> Pruned:
        import torch_pruning as tp

        options, rounds = setting.options, rounds_to(ratio, setting.options.rate)
        network, steps = copy.deepcopy(setting.dense), 400
        streams = [layer for name, layer in network.named_modules() if name.endswith("conv2") or name == "conv1"]
        pruner = tp.pruner.GroupNormPruner(
            network,
            setting.example,
            tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1.0,
            global_pruning=global_pruning,
            iterative_steps=steps,
            max_pruning_ratio=0.9,
            ignored_layers=[network.linear, *(streams if inside else [])],
        )
        whole = count_flops(network, setting.example)
        torch.manual_seed(seed)
        for round in range(1, rounds + 1):
            target = max(ratio, (1 - options.rate) ** round)
            while count_flops(network, setting.example) > target * whole and pruner.current_step < steps:
                pruner.step()
            setting.train(network, options.short)
        network.zero_grad(set_to_none=True)
        return Pruned(network, rounds * options.short, rounds * options.short)

    return prune


METHODS: dict[str, Method] = {
    "dense": dense,
    "netadapt": by_strategy("netadapt"),
    "knapsack": by_strategy("knapsack"),
    "uniform": by_strategy("uniform"),
    "torch-pruning": by_torch_pruning(global_pruning=False),
    "torch-pruning, global": by_torch_pruning(global_pruning=True),
    "torch-pruning, global, inside blocks": by_torch_pruning(global_pruning=True, inside=True),
}


def report(results: Sequence[Result], about: dict[str, Any], options: argparse.Namespace) -> str:
    """The Markdown page: mean and spread of the seeds."""
    rows = []
    for ratio in options.ratios:
        for method in options.methods:
            mine = [result for result in results if (result.method, result.ratio) == (method, ratio)]
            rows.append(
                [
                    method,
                    "" if method == "dense" else f"{ratio:.0%}",
                    f"{statistics.mean(r.macs_kept for r in mine):.1%}",
                    f"{statistics.mean(r.params_kept for r in mine):.1%}",
                    spread([r.validation for r in mine]),
                    spread([r.test for r in mine]),
                    f"{statistics.mean(r.steps for r in mine):.0f}",
                    f"{statistics.mean(r.searched for r in mine):.0f}",
                    f"{statistics.mean(r.seconds for r in mine):.0f}",
                ]
            )
    header = ("method", "budget", "MACs", "params", "validation %", "test %", "its steps", "all candidates' steps", "s")
    return "\n".join(
        [
            f"# Accuracy at the same MACs: CIFAR ResNet-{options.depth}",
            "",
            f"{machine.sentence(about)}.",
            "",
            " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
            "",
            f"{options.seeds} seed(s): mean, and least to most in brackets. {options.rate:.0%} of the MACs a round, "
            f"then {options.short} steps of {options.batch} images; {options.long} of {2 * options.batch} at the end; "
            f"from the first {options.train_images:,} training images.",
            "",
            *table(header, rows),
        ]
    )


def spread(values: Sequence[float]) -> str:
    """Mean, and least to most where there are several."""
    text = f"{statistics.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
