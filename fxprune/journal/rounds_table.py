"""The rounds of a search as rows of text, for every table that shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fxprune.journal.records import Round

MOST = 3  # groups whose widths are named in a row; the others are counted


class Searched(Protocol):
    """What has rounds: the result of a search, or a run that was read from its folder."""

    @property
    def start(self) -> dict[str, float]: ...
    @property
    def original_widths(self) -> dict[str, int]: ...
    @property
    def rounds(self) -> tuple[Round, ...]: ...
    @property
    def accepted(self) -> int: ...
    @property
    def baseline(self) -> float: ...


@dataclass(frozen=True)
class Row:
    """One network: the unpruned one (round 0, no record), or the one that a round chose.

    reached: what it uses of each resource, with the round's target. changed: `64 -> 56` of the groups it narrows.
    """

    round: int
    reached: tuple[str, ...]
    chosen: str
    changed: str
    score: str
    returned: bool
    record: Round | None = None


def shares(search: Searched) -> Callable[[float, str], str]:
    """Spells an amount of a resource as its share of the start."""
    return lambda value, name: f"{value / search.start[name]:.1%}"


def round_rows(search: Searched, names: Sequence[str], spell: Callable[[float, str], str]) -> list[Row]:
    """A row a round, the unpruned network first; `spell(value, name)` says an amount of a resource."""
    unpruned = tuple(spell(search.start[name], name) for name in names)
    rows = [Row(0, unpruned, "", "", f"{search.baseline:.6g}", search.accepted == 0)]
    before = search.original_widths
    for record in search.rounds:
        reached = tuple(f"{spell(record.achieved[n], n)} ({spell(record.targets[n], n)})" for n in names)
        changed = [f"{before[group]} -> {width}" for group, width in record.winner.widths.items()]
        more = f" and {len(changed) - MOST} more" if len(changed) > MOST else ""
        rows.append(
            Row(
                record.round, reached, record.chosen_group, ", ".join(changed[:MOST]) + more, f"{record.score:.6g}",
                record.round == search.accepted, record,
            )
        )  # fmt: skip
        before = record.widths
    return rows
