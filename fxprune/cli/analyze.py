"""What `fxprune analyze` finds and prints: the groups, what is frozen and why, how much of the network is prunable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

import passes
from fxprune.io.printed_text import counted
from fxprune.problem.inputs import Analysed, analysed, check_kind

if TYPE_CHECKING:
    from rich.console import Console

FEW = 4  # of the nodes and of the dimensions shown for a reason; the rest is counted


@dataclass(frozen=True)
class GroupRow:
    """One line of the table. `macs_share`: of all MACs, those that the group's width has a part in; 0 to 1."""

    name: str
    size: int
    slices: int
    mixed: bool
    macs_share: float


@dataclass(frozen=True)
class FrozenReason:
    """One reason, the nodes (and source lines) that give it, and the parameter dimensions that it keeps as they are."""

    reason: str
    nodes: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """`macs` are for the example inputs as they were given; shares are 0 to 1."""

    model: str
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenReason, ...]
    macs: int
    params: int
    prunable_macs: float
    prunable_params: float


def analyze_model(model: nn.Module, example_inputs: object) -> Analysis:
    """Couple and cost `model`, without its wrappers; it is not changed. Raises PassError or InputError where that
    cannot be done."""
    return analysis_of(analysed_for_table(model, example_inputs))


def analysed_for_table(model: nn.Module, example_inputs: object) -> Analysed:
    """The network, in evaluation mode, coupled."""
    check_kind(model, "analyze")
    return analysed(model.eval(), example_inputs)


def analysis_of(given: Analysed) -> Analysis:
    """What the table shows of a coupled network."""
    network, coupling = given.network, given.coupling
    costs, coverage = passes.cost(coupling), coupling.coverage()
    total, tensors = costs.macs(), (*network.named_parameters(), *network.named_buffers())
    rows = tuple(
        # Without the group's units all that remains are the terms that the group has no part in.
        GroupRow(g.name, g.size, len(g.slices), g.mixed, 1 - costs.macs({g.name: 0}) / total if total else 0.0)
        for g in coupling.groups
    )
    return Analysis(
        type(network).__name__,
        rows,
        _by_reason(coupling, {name: tensor.shape for name, tensor in tensors}),
        total,
        costs.params(),
        coverage.macs,
        coverage.params,
    )


def _by_reason(coupling: passes.Coupling, shapes: Mapping[str, Sequence[int]]) -> tuple[FrozenReason, ...]:
    nodes: dict[str, dict[str, None]] = defaultdict(dict)  # dicts: sets that keep their order
    kept: dict[str, dict[str, None]] = defaultdict(dict)
    for frozen in coupling.frozen:
        nodes[frozen.reason][f"{frozen.node} ({frozen.source})" if frozen.source else frozen.node] = None
        part = (
            f" [{frozen.start}:{frozen.stop}]" if frozen.stop - frozen.start < shapes[frozen.tensor][frozen.dim] else ""
        )
        kept[frozen.reason][f"{frozen.tensor} dim {frozen.dim}{part}"] = None
    return tuple(FrozenReason(reason, tuple(nodes[reason]), tuple(kept[reason])) for reason in nodes)


def _few(things: Sequence[str]) -> str:
    more = len(things) - FEW
    return ", ".join(things[:FEW]) + (f" and {more} more" if more > 0 else "")


def print_analysis(analysis: Analysis, console: Console, inputs: str) -> None:
    """The groups as a table, what stays by reason, the shares; names stay whole at any width of the terminal."""
    from rich.markup import escape
    from rich.table import Table

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    groups = Table()
    groups.add_column("group", no_wrap=True, min_width=max((len(row.name) for row in analysis.groups), default=0))
    for column in ("size", "slices", "mixed", "MACs"):
        groups.add_column(column, justify="left" if column == "mixed" else "right")
    for row in analysis.groups:
        share = f"{row.macs_share:.1%}"
        groups.add_row(escape(row.name), f"{row.size:,}", str(row.slices), "yes" if row.mixed else "", share)
    line(f"{analysis.model}: {counted(len(analysis.groups), 'group')} of units that can be removed")
    if analysis.groups:
        console.print(groups)
    console.print(
        "slices: dimensions of parameters and buffers that shrink together. mixed: a normalisation or mean runs over "
        "the units, so removing one changes the others. MACs: the share that the group's width has a part in."
    )

    line("\nWhat stays as it is, and why:" if analysis.frozen else "\nNothing stays as it is.")
    for entry in analysis.frozen:
        line(f"- {entry.reason}")
        line(f"    given by: {_few(entry.nodes)}")
        line(f"    keeps: {_few(entry.kept)}")
    line(f"\ninputs: {inputs}")
    line(
        f"prunable: {analysis.prunable_macs:.1%} of {analysis.macs:,} MACs, "
        f"{analysis.prunable_params:.1%} of {analysis.params:,} parameters"
    )
