"""The rounds of a search as a table for people and as data for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.journal.read_run import Run
from fxprune.journal.rounds_table import round_rows, shares

if TYPE_CHECKING:
    from rich.console import Console


def rounds_data(run: Run) -> list[dict[str, object]]:
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
    for row in round_rows(run, names, shares(run)):
        time = f"{row.record.seconds:.1f} s" if row.record else ""
        number = f"{'*' * bool(run.result and row.returned)}{row.round}"
        table.add_row(number, *row.reached, escape(row.chosen), row.changed, row.score, time)
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
