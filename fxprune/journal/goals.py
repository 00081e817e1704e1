"""The goals of a search that went on: `goals.json` names each with the round after which it was asked.

A goal is the budgets and the number of rounds: the only parts of a run's identity that may change. Rounds belong to the
goal that was asked when they were run. `run.json`, and with it every record, keeps the identity of the first goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxprune.io.storage import Damaged, read_json, remove, write_json
from fxprune.io.typed_records import made
from fxprune.journal.records import Identity
from fxprune.problem.search_problem import Goal
from fxprune.resources.budgets import parse_budget

FILE = "goals.json"
KEYS = ("budget", "budget_ratio", "budget_type", "budgets", "netadapt_max_rounds")


@dataclass(frozen=True)
class Asked:
    """A goal as a record: asked when `after` rounds were finished. config: its keys of the configuration."""

    after: int
    budgets: tuple[dict[str, object], ...]
    config: dict[str, object]

    @staticmethod
    def of(identity: Identity, after: int = 0) -> Asked:
        """The goal that the identity of a run names."""
        config = {key: value for key, value in identity["config"].items() if key in KEYS}
        return Asked(after, tuple(identity["budgets"]), config)

    def put_into(self, identity: Identity) -> Identity:
        """The identity with this goal in place of its own."""
        return {**identity, "budgets": list(self.budgets), "config": {**identity["config"], **self.config}}

    def same(self, other: Asked) -> bool:
        return self._plain() == other._plain()

    def _plain(self) -> object:
        """Without what makes no difference: the order of the budgets, and where they were written."""
        config = {key: value for key, value in self.config.items() if key != "budgets"}
        return sorted(self.budgets, key=lambda budget: str(budget["resource"])), config


def without_goal(identity: Identity) -> dict[str, Any]:
    """What of an identity must stay as it is: all of it but the goal, of which the resources must."""
    config = {key: value for key, value in (identity.get("config") or {}).items() if key not in KEYS}
    resources = sorted(str(budget.get("resource")) for budget in identity.get("budgets") or ())
    return {**identity, "budgets": resources, "config": config}


def read_goals(folder: Path, identity: Identity | None) -> tuple[Asked, ...]:
    """The goals of a search, the first one included; none where it has had no other.

    identity: that of the run; None where its record is lost. Raises Damaged, also for the goals of another run.
    """
    found = read_json(folder / FILE)
    try:
        goals = tuple(made(Asked, goal) for goal in found["goals"]) if found is not None else ()
        for goal in goals:
            parse_budget(goal.budgets)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / FILE}: the record has not the form that this version writes ({error})") from None
    if [goal.after for goal in goals] != sorted(goal.after for goal in goals):
        raise Damaged(f"{folder / FILE}: the goals are not in the order of their rounds")
    if goals and identity is not None and not goals[0].same(Asked.of(identity)):
        raise Damaged(f"{folder / FILE}: the goals are those of another run")
    return goals


def ask(folder: Path, known: Sequence[Asked], now: Asked) -> tuple[Asked, ...]:
    """The goals with the one of now, which are written where they differ from the known ones.

    A goal under which no round was finished is dropped. A result in the folder belongs to another goal and is removed.
    """
    goals = list(known)
    if len(goals) > 1 and goals[-1].after == now.after:
        goals.pop()
    if not goals[-1].same(now):
        goals.append(now)
    if tuple(goals) != tuple(known):
        remove(folder / "result.json")
        write_json(folder / FILE, {"goals": [asdict(goal) for goal in goals]})
    return tuple(goals)


def earlier(goals: Sequence[Asked]) -> tuple[Goal, ...]:
    """All but the last, as a problem holds them."""
    following = zip(goals, goals[1:], strict=False)
    return tuple(Goal(after.after, parse_budget(goal.budgets)) for goal, after in following)
