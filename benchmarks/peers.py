"""`python -m benchmarks.peers`: beside Torch-Pruning on the same networks in one run: seconds, coverage, exactness.

Both analyse a network and remove a random half of the units of every group that they find, by their own defaults; the
classifier keeps its outputs. Seconds are processor seconds, runs alternate, the least of them counts. fxprune's are
couple, cost and apply_plan in place, Torch-Pruning's its graph and its pruning in place, with the hints for a family
that its own tests give. With ``--route graph`` fxprune's are capture, which runs the graph beside the module, couple,
cost and the pruning to a fresh graph. Torch-Pruning's time grows with the example input, which it runs: both are timed
on images of the size that a network is made for, and on small ones. Exactness is judged in float64 by
`benchmarks.judge`, the same for both.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

import passes
from benchmarks import judge, machine
from benchmarks.checks import analyse, count_flops, random_halves, train_once
from benchmarks.networks import Network, build, networks
from benchmarks.options import command_line
from benchmarks.processes import each
from benchmarks.report import geometric_mean, table, write
from benchmarks.zoo import choose, warm_up

QUICK = ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "shufflenet_v2_x1_0", "vit_b_32", "googlenet", "swin_t")
# Those that RESULTS.md names as not compared, too large or too slow for one run of all: 73 of 80 remain.
NOT_COMPARED = frozenset(
    ("densenet201", "maxvit_t", "regnet_y_128gf", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vit_h_14")
)  # fmt: skip
EXACT = 1e-9
_WEIGHING = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)

Prune = Callable[[nn.Module, torch.Tensor], nn.Module]


@dataclass
class Outcome:
    """What one pruner made of one network.

    failure: where it did not come to an end. seconds: of every run on images of the network's own size, small_seconds:
    on small ones. error: against the masked network. kept: share
    of the MACs that remains. untouched: share of the elements of convolutions and linear layers in parameters that
    lost nothing. trains: why the pruned network does not run forward and backward in training mode, else empty.
    """

    failure: str = ""
    seconds: list[float] = field(default_factory=list)
    small_seconds: list[float] = field(default_factory=list)
    error: float | None = None
    kept: float | None = None
    untouched: float | None = None
    trains: str = ""

    @property
    def exact(self) -> bool:
        return self.error is not None and self.error <= EXACT


@dataclass
class Row:
    """Both pruners on one network."""

    name: str
    fxprune: Outcome
    torch_pruning: Outcome

    @property
    def ratio(self) -> float | None:
        """How many times as long Torch-Pruning takes; None unless both come to an end with a network that runs."""
        return _ratio(self.torch_pruning.seconds, self.fxprune.seconds)

    @property
    def small_ratio(self) -> float | None:
        """The same on small images."""
        return _ratio(self.torch_pruning.small_seconds, self.fxprune.small_seconds)


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    return min(theirs) / min(ours) if theirs and ours else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on the networks that were asked for."""
    options = read_options(arguments)
    machine.one_thread()
    try:
        import torch_pruning  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit("this comparison needs Torch-Pruning: pip install torch-pruning") from None
    by_fxprune = ROUTES[options.route]
    only = QUICK if options.quick else options.only
    rows, data = compare(by_fxprune, only, options.repeats, options.seconds, options.memory)
    text = report(rows, data["machine"])
    write(options.out, "peers", text, data)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("peers", __doc__, "only repeats seconds memory", seconds=600)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument(
        "--route", choices=ROUTES, default="module", help="what fxprune prunes: the module or its graph"
    )
    return parser.parse_args(arguments)


def compare(
    by_fxprune: Prune, only: Sequence[str], repeats: int, seconds: float, memory: float
) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and all figures as plain data. Of those `NOT_COMPARED`, those alone that `only` names in full."""
    chosen = [
        n for n in choose(networks(), only, ("classification",)) if n.name in {*only} or n.name not in NOT_COMPARED
    ]
    warm_up()
    about, rows = machine.describe(), []

    def compared(network: Network) -> Row:
        return compare_one(network, by_fxprune, repeats)

    for network, row, why in each(compared, chosen, jobs=1, seconds=seconds, memory_gib=memory):
        rows.append(row or Row(network.name, Outcome(why), Outcome(why)))
        print(f"{len(rows)}/{len(chosen)} {said(rows[-1])}", file=sys.stderr, flush=True)
    plain = [asdict(row) | {"ratio": row.ratio, "small_ratio": row.small_ratio} for row in rows]
    return rows, {"machine": about, "summary": summary(rows), "rows": plain}


def compare_one(network: Network, by_fxprune: Prune, repeats: int) -> Row:
    """Exactness first, in float64, then the seconds of alternating runs in float32."""
    warnings.filterwarnings("ignore")
    row = Row(network.name, Outcome(), Outcome())
    pruners: tuple[tuple[Outcome, Prune], ...] = ((row.fxprune, by_fxprune), (row.torch_pruning, by_torch_pruning))
    torch.set_default_dtype(torch.float64)
    dense, example = build(network), torch.randn(network.shape)
    for outcome, prune in pruners:
        try:
            _judge(outcome, dense, example, prune)
        except Exception as error:  # what a pruner raises is its result
            outcome.failure = said_of(error)
    torch.set_default_dtype(torch.float32)
    _time(network, repeats, [(outcome.small_seconds, prune) for outcome, prune in pruners if not outcome.failure])
    _time(native(network), repeats, [(outcome.seconds, prune) for outcome, prune in pruners if not outcome.failure])
    return row


def native(network: Network) -> Network:
    """The network at the image size that it is made for."""
    options = {key: value for key, value in network.options.items() if key != "image_size"}
    side = 299 if network.name == "inception_v3" else 224
    return replace(network, shape=(1, 3, side, side), options=options)


def _time(network: Network, repeats: int, pruners: Sequence[tuple[list[float], Prune]]) -> None:
    """Add the seconds of alternating runs to the lists."""
    dense, example = build(network), torch.randn(network.shape)
    for _ in range(repeats):
        for seconds, prune in pruners:
            mine = copy.deepcopy(dense)
            gc.collect()  # what an earlier run has left is not this one's
            begun = time.process_time()
            prune(mine, example)
            seconds.append(time.process_time() - begun)


def by_module(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """fxprune on the module itself, in place."""
    coupling = passes.couple(model, example)
    cost = passes.cost(coupling)
    cost.macs(), cost.params()
    return passes.apply_plan(model, coupling.plan(random_halves(coupling)), inplace=True)


def by_graph(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """fxprune on its graph."""
    return analyse(model, example, machine.Seconds()).pruned


ROUTES: dict[str, Prune] = {"module": by_module, "graph": by_graph}


def by_torch_pruning(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Its BasePruner with random importance, and what its users have to say about a family of networks."""
    import torch_pruning as tp
    from torchvision.models import ConvNeXt, VisionTransformer
    from torchvision.models.convnext import CNBlock

    torch.manual_seed(0)
    ignored = [m for m in model.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    hints: dict[str, Any] = {}
    if isinstance(model, VisionTransformer):
        attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
        hints["round_to"] = attention[0].num_heads
        hints["unwrapped_parameters"] = [(model.class_token, 2), (model.encoder.pos_embedding, 2)]
        ignored += [m.out_proj for m in attention]
    elif isinstance(model, ConvNeXt):
        hints["unwrapped_parameters"] = [(m.layer_scale, 0) for m in model.modules() if isinstance(m, CNBlock)]
    pruner = tp.pruner.BasePruner(
        model, example, tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=ignored, **hints
    )
    pruner.step()
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    return model


def _judge(outcome: Outcome, dense: nn.Module, example: torch.Tensor, prune: Prune) -> None:
    pruned, survivors = judge.prune_by_position(dense, lambda model: prune(model, example))
    inputs = torch.randn(example.shape[0] + 1, *example.shape[1:])
    torch.backends.mha.set_fastpath_enabled(False)
    outcome.error = judge.error(dense, pruned, survivors, inputs)
    outcome.kept = count_flops(pruned, example) / count_flops(dense, example)
    outcome.untouched = untouched(dense, survivors)
    try:
        train_once(pruned, example)
    except Exception as error:
        outcome.trains = said_of(error)


def untouched(dense: nn.Module, survivors: judge.Survivors) -> float:
    """The share of conv and linear elements that lie in parameters which lost nothing."""
    whole = total = 0
    for path, module in dense.named_modules():
        if isinstance(module, _WEIGHING):
            for name, parameter in module.named_parameters(path, recurse=False):
                total += parameter.numel()
                left = survivors[name].numel() if name in survivors else parameter.numel()
                whole += parameter.numel() if left == parameter.numel() else 0
    return whole / total


def said_of(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def said(row: Row) -> str:
    """One line for the eye while it runs."""
    parts = []
    for name, outcome in (("fxprune", row.fxprune), ("Torch-Pruning", row.torch_pruning)):
        spent = f"{min(outcome.seconds):.2f} s" if outcome.seconds else ""
        parts.append(f"{name}: {outcome.failure or f'error {outcome.error:.0e}, kept {outcome.kept:.1%}'} {spent}")
    return f"{row.name}: {'; '.join(parts)}; ratio {row.ratio or float('nan'):.2f}"


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, and the mean and extremes of the ratios."""
    ratios = {row.name: row.ratio for row in rows if row.ratio}
    small = [row.small_ratio for row in rows if row.small_ratio]
    exact = [row.ratio for row in rows if row.ratio and row.fxprune.exact and row.torch_pruning.exact]
    lowest = min(ratios, key=lambda name: ratios[name], default=None)
    counts = {
        key: {
            "networks": len(rows),
            "fails": sum(bool(o.failure) for o in outcomes),
            "exact": sum(o.exact for o in outcomes),
            "wrong": sum(not o.failure and not o.exact for o in outcomes),
            "does_not_train": sum(bool(o.trains) for o in outcomes),
        }
        for key, outcomes in (
            ("fxprune", [r.fxprune for r in rows]),
            ("torch_pruning", [r.torch_pruning for r in rows]),
        )
    }
    return counts | {
        "both": len(ratios),
        "geometric_mean_ratio": geometric_mean(ratios.values()) if ratios else None,
        "geometric_mean_ratio_small_images": geometric_mean(small) if small else None,
        "geometric_mean_ratio_where_both_exact": geometric_mean(exact) if exact else None,
        "least_ratio": [lowest, ratios[lowest]] if lowest else None,
    }


def report(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The Markdown page."""
    found = summary(rows)
    lines = [
        "# Beside Torch-Pruning",
        "",
        f"{machine.sentence(about)}.",
        "",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
    ]
    if found["both"]:
        name, least = found["least_ratio"]
        mean, small = found["geometric_mean_ratio"], found["geometric_mean_ratio_small_images"]
        lines += [
            f"**Torch-Pruning takes {mean:.2f} times as long as fxprune in the geometric mean** of the {found['both']} "
            f"networks that both can do ({small:.2f} on small images; least: {least:.2f}, {name}).",
            "",
        ]
    header = ("", "networks", "exact", "wrong", "fails", "does not train afterwards")
    names = {"fxprune": "fxprune", "torch_pruning": "Torch-Pruning"}
    counts = [
        [label, *(str(found[key][c]) for c in ("networks", "exact", "wrong", "fails", "does_not_train"))]
        for key, label in names.items()
    ]
    lines += [*table(header, counts), "", *table(HEADER, [cells(row) for row in rows]), ""]
    notes = [
        f"- {row.name}, {label}: {text}"
        for row in rows
        for label, outcome in (("fxprune", row.fxprune), ("Torch-Pruning", row.torch_pruning))
        for text in (outcome.failure, outcome.trains and f"in training mode: {outcome.trains}")
        if text
    ]
    return "\n".join([*lines, *(["## What fails", "", *notes] if notes else [])])


HEADER = (
    "network", "fxprune s", "Torch-Pruning s", "ratio", "small images", "fxprune error", "its MACs kept", "untouched",
    "Torch-Pruning error", "its MACs kept", "untouched",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    def found(outcome: Outcome) -> list[str]:
        if outcome.error is None or outcome.kept is None or outcome.untouched is None:
            return ["fails", "", ""]
        return [f"{outcome.error:.0e}", f"{outcome.kept:.1%}", f"{outcome.untouched:.1%}"]

    seconds = [f"{min(o.seconds):.2f}" if o.seconds else "" for o in (row.fxprune, row.torch_pruning)]
    ratios = ["" if ratio is None else f"{ratio:.2f}" for ratio in (row.ratio, row.small_ratio)]
    return [row.name, *seconds, *ratios, *found(row.fxprune), *found(row.torch_pruning)]


if __name__ == "__main__":
    sys.exit(main())
