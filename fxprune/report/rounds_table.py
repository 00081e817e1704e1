"""The rounds of a search as a table for people and as data for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxprune.journal.read_run import Run

if TYPE_CHECKING:
    from rich.console import Console


def rounds_data(run: Run) -> list[dict[str, Any]]:
    """One entry a round, the unpruned network first; JSON types only."""
    first = {"round": 0, "achieved": run.start, "score": run.baseline, "widths": run.original_widths}
    return [
        {**first, "returned": run.accepted == 0},
        *(
            {
                "round": record.round,
                "targets": record.targets,
                "achieved": record.achieved,
                "chosen": record.chosen_group,
                "changed": record.winner.widths,
                "score": record.score,
                "reason": record.reason,
                "seconds": record.seconds,
                "widths": record.widths,
                "returned": record.round == run.accepted,
            }
            for record in run.rounds
        ),
    ]


def print_rounds(run: Run, console: Console) -> None:
    """The table, how the search stands, and what was found damaged."""
    from rich.markup import escape
    from rich.table import Table

    names = list(run.limits)
    table = Table(title=escape(f"{run.model['class']}: {', '.join(map(str, run.budgets))}"))
    table.add_column("round", justify="right")
    for name in names:
        table.add_column(f"{name} (target)", justify="right")
    table.add_column("chosen", overflow="fold")
    table.add_column("width")
    table.add_column("score", justify="right")
    table.add_column("time", justify="right")
    table.add_row(_number(run, 0), *("100.0 %" for _ in names), "", "", f"{run.baseline:.6g}", "")
    before = run.original_widths
    for record in run.rounds:
        shares = [
            f"{record.achieved[name] / run.start[name]:.1%} ({record.targets[name] / run.start[name]:.1%})"
            for name in names
        ]
        changed = [f"{before[group]} -> {width}" for group, width in record.winner.widths.items()]
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        table.add_row(
            _number(run, record.round), *shares, escape(record.chosen_group), ", ".join(changed[:2]) + more,
            f"{record.score:.6g}", f"{record.seconds:.1f} s",
        )  # fmt: skip
        before = record.widths
    console.print(table)
    console.print(state(run) + ("; * is the network that is returned" if run.result else ""), markup=False)
    for damage in run.damage:
        console.print(f"damaged: {damage}", style="red", markup=False)


def state(run: Run) -> str:
    """How the search stands, in one line."""
    if run.result is not None:
        return f"finished: {run.result['stopped']}"
    waiting = f", {len(run.unfinished)} candidates of round {len(run.rounds) + 1}" if run.unfinished else ""
    return f"in progress or interrupted: {len(run.rounds)} rounds{waiting} are finished"


def _number(run: Run, round: int) -> str:
    return f"*{round}" if run.result and round == run.accepted else str(round)
