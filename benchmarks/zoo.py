"""`python -m benchmarks.zoo`: every network of torchvision, pruned by half at random and proven; a table and JSON out.

One process a network, with a limit on its time and its memory, so that one failure costs one row. The processes are
forked from one that has torch loaded and warm: seconds are processor seconds of the work itself.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.checks import TOLERANCE, Row, check
from benchmarks.networks import FAMILIES, Network, networks
from benchmarks.options import command_line
from benchmarks.processes import each
from benchmarks.report import table, write

LEAST_PRUNABLE = 0.99
ANALYSIS = ("capture", "couple", "cost")
STEPS = (*ANALYSIS, "plan", "prune", "verify", "train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the networks that were asked for; 1 where one of them is not exact."""
    options = read_options(arguments)
    machine.one_thread()
    chosen = choose(networks(), options.only, options.family)
    warm_up()
    begun = time.monotonic()
    rows: list[Row] = []
    about = machine.describe()
    print(machine.sentence(about), file=sys.stderr)
    for row in run(chosen, options.jobs, options.seconds, options.memory):
        rows.append(row)
        print(f"{len(rows):3d}/{len(chosen)} {said(row)}", file=sys.stderr, flush=True)
    order = {network.name: number for number, network in enumerate(chosen)}
    rows.sort(key=lambda row: order[row.name])
    wall_seconds = round(time.monotonic() - begun, 1)
    data = {"machine": about, "wall_seconds": wall_seconds, "rows": [row.to_dict() for row in rows]}
    text = report(rows, about, wall_seconds)
    write(options.out, "zoo", text, data)
    return 0 if all(row.exact for row in rows) else 1


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("zoo", __doc__, "only jobs seconds memory")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    return parser.parse_args(arguments)


def choose(known: Sequence[Network], only: Sequence[str], families: Sequence[str]) -> list[Network]:
    """The networks whose names match, small ones of a failing family being found as quickly as large ones."""
    found = [n for n in known if n.family in families and any(fnmatch.fnmatchcase(n.name, p) for p in only)]
    if not found:
        raise SystemExit(f"no network matches {' '.join(only)}; names are those of torchvision.models.list_models()")
    return found


def warm_up() -> None:
    """What torch loads on first use, so that the forked processes have it already."""
    import torch

    from benchmarks.checks import analyse

    convolution = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)]
    net = torch.nn.Sequential(*convolution, torch.nn.Flatten(), torch.nn.Linear(4, 2))
    analyse(net.eval(), torch.randn(1, 3, 3, 3), machine.Seconds())


def run(chosen: Sequence[Network], jobs: int, seconds: float, memory_gib: float) -> Iterator[Row]:
    """Rows as they come, from `jobs` processes at a time."""
    for network, row, why in each(check, chosen, jobs=jobs, seconds=seconds, memory_gib=memory_gib):
        yield row or Row(network.name, network.family, network.input, failures={"process": why})


def said(row: Row) -> str:
    """One line for the eye while it runs."""
    spent = " ".join(f"{step} {row.seconds[step]:.2f}" for step in STEPS if step in row.seconds)
    found = "exact" if row.exact else "; ".join(f"{step}: {why}" for step, why in row.failures.items())
    return f"{row.name}: weights {row.weights_prunable:.2%}, {spent}, {row.peak_mib:.0f} MiB, {found}"


COLUMNS = f"""\
weights: share of the parameters of convolutions and linear layers that some group can remove. MACs: the share that
shrinks with some group. kept: MACs of the network without a random half of the units of every group. verified: largest
relative error of its outputs in float64 against the masked network (limit {TOLERANCE:g}), at two batch sizes. zeroed:
the same against the network with the removed slices zeroed, computed without fxprune. cost: FLOPs
and parameters equal those counted on the pruned network. train: a forward and backward pass in training mode. Seconds
are of one processor."""


def report(rows: Sequence[Row], about: dict[str, Any], wall_seconds: float) -> str:
    """The Markdown page: the summary, one table a family, and the reason of every exception."""
    lines = [
        "# Every network of torchvision, pruned by half at random and proven",
        "",
        f"{machine.sentence(about)}. {wall_seconds / 60:.1f} minutes in all.",
        "",
        COLUMNS,
        "",
        summary(rows),
        "",
    ]
    for family in FAMILIES:
        mine = [row for row in rows if row.family == family]
        if mine:
            lines += [f"## {family.capitalize()}", "", *table(HEADER, [cells(row) for row in mine]), ""]
    lines += exceptions(rows)
    return "\n".join(lines)


HEADER = (
    "network", "input", "groups", "mixed", "weights", "MACs", "kept", "verified", "zeroed", "cost", "train",
    *(f"{step} s" for step in STEPS), "peak MiB",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    return [
        row.name if row.proven == "whole" else f"{row.name} (a)",
        row.input,
        f"{row.groups}",
        f"{row.mixed_groups}",
        f"{row.weights_prunable:.2%}",
        f"{row.macs_prunable:.2%}",
        f"{row.macs_kept:.1%}",
        _error(row.verified),
        _error(row.masked),
        _yes(row.cost_equal),
        _yes(row.trains),
        *(f"{row.seconds[step]:.2f}" if step in row.seconds else "" for step in STEPS),
        f"{row.peak_mib:.0f}",
    ]


def summary(rows: Sequence[Row]) -> str:
    """How many are exact, how many reach the coverage that is asked for, seconds of the analysis."""
    said = [f"**{sum(row.exact for row in rows)} of {len(rows)} exact.**"]
    images = [row for row in rows if row.family == "classification"]
    if images:
        covered = sum(row.weights_prunable >= LEAST_PRUNABLE for row in images)
        said.append(
            f"{covered} of {len(images)} classification networks have {LEAST_PRUNABLE:.0%} of their weights prunable."
        )
    spent = [sum(row.seconds.get(step, 0.0) for step in ANALYSIS) for row in rows]
    said.append(f"Analysis ({', '.join(ANALYSIS)}): median {median(spent):.2f} s, longest {max(spent):.2f} s.")
    return " ".join(said)


def exceptions(rows: Sequence[Row]) -> list[str]:
    """What failed, what was proven on a smaller sibling, and why weights stay where many do."""
    lines = []
    cut = [row for row in rows if row.proven != "whole"]
    if cut:
        lines += ["(a) Too large to prove whole: analysed and counted whole on meta, and proven at full width:", ""]
        lines += [f"- {row.name}: {row.proven}" for row in cut] + [""]
    failed = [row for row in rows if not row.exact]
    if failed:
        lines += ["## Not exact", ""]
        lines += [f"- {row.name}: {step}: {why}" for row in failed for step, why in row.failures.items()] + [""]
    low = [row for row in rows if row.groups and row.weights_prunable < LEAST_PRUNABLE]
    if low:
        lines += [f"## Less than {LEAST_PRUNABLE:.0%} of the weights prunable", ""]
        for row in low:
            most = list(row.left.items())[:4]
            why = "; ".join(f"{count:,} elements: {reason or 'no reason given'}" for reason, count in most)
            lines.append(f"- {row.name} ({row.weights_prunable:.2%}): {why}")
        lines.append("")
    return lines


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "NO"


if __name__ == "__main__":
    sys.exit(main())
