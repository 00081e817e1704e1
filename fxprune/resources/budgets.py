"""Budgets: how much of a resource the pruned network may use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from fxprune.errors import BudgetError, BudgetTypeError
from fxprune.registries import RESOURCES
from fxprune.resources.kinds import unit_of
from passes.arguments import got, quoted

ALIASES = {"weights": "params"}


@dataclass(frozen=True)
class Budget:
    """A target for one resource: `ratio`, a share of what the network uses now, or `value`, an absolute number.

    Resources and units: flops and macs (operations), params (elements; alias weights), memory (bytes, the peak
    of live activations plus parameters), latency (milliseconds), and those that `register_resource` has added.

    >>> Budget("macs", ratio=0.5)
    Budget(resource='macs', ratio=0.5, value=None)
    >>> Budget("weights", value=2_000_000).resource
    'params'
    """

    resource: str
    ratio: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "resource", resource_name(self.resource))
        if (self.ratio is None) == (self.value is None):
            which = "both" if self.ratio is not None else "neither"
            raise BudgetError(
                f"Budget({self.resource!r}): got {which} of ratio and value, expected one of them; "
                f"write Budget({self.resource!r}, ratio=0.5) or Budget({self.resource!r}, value=...)."
            )
        if self.ratio is not None:
            object.__setattr__(self, "ratio", _checked_ratio(self.ratio, f"Budget({self.resource!r}, ratio=...)"))
        else:
            object.__setattr__(self, "value", _checked_value(self.value, self.resource))

    def limit(self, start: float) -> float:
        """The absolute number that meets this budget, for a network that uses `start`."""
        if isinstance(start, bool) or not isinstance(start, Real):
            raise BudgetTypeError(f"Budget.limit: start: got {got(start)}; expected what the network uses, a number.")
        return self.value if self.value is not None else self.ratio * start

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{self.resource} at {self.ratio:.4g} of the start"
        return f"{self.resource} at {self.value:,} {unit_of(self.resource)}"

    def to_dict(self) -> dict[str, object]:
        amount = {"ratio": self.ratio} if self.ratio is not None else {"value": self.value}
        return {"resource": self.resource, **amount}


def resource_name(name: object) -> str:
    """The canonical name of a resource; an unknown one is an error with the nearest known name.

    >>> resource_name("weights")
    'params'
    """
    if not isinstance(name, str):
        raise BudgetTypeError(f"Budget: resource is {got(name)}; expected one of {_known()}.")
    name = ALIASES.get(name, name)
    if name not in RESOURCES:
        near = get_close_matches(name, (*RESOURCES.list(), *ALIASES), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BudgetError(f"Budget: unknown resource {quoted(name)}; expected one of {_known()}.{hint}")
    return name


def parse_budget(budget: object) -> tuple[Budget, ...]:
    """Read every way to write a budget into one tuple of Budgets.

    A float in (0, 1] is a share of the FLOPs, an int an absolute number of FLOPs, a Budget itself, a mapping the
    keywords of one, and a list of these several budgets that must all be met.

    >>> parse_budget(0.5)
    (Budget(resource='flops', ratio=0.5, value=None),)
    >>> [b.resource for b in parse_budget([Budget("latency", ratio=0.6), Budget("params", value=2_000_000)])]
    ['latency', 'params']
    """
    if isinstance(budget, Sequence) and not isinstance(budget, str | bytes):
        if not budget:
            raise BudgetError("budget: the list is empty; expected at least one Budget.")
        parsed = tuple(_parse_one(item) for item in budget)
        for i, item in enumerate(parsed):
            if any(item.resource == earlier.resource for earlier in parsed[:i]):
                raise BudgetError(f"budget: {item.resource} is budgeted twice; keep the stricter of the two.")
        return parsed
    return (_parse_one(budget),)


def _parse_one(budget: object) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, Mapping):
        unknown = set(budget) - {"resource", "ratio", "value"}
        if unknown or "resource" not in budget:
            raise BudgetError(
                f"budget: a table has the keys {sorted(map(str, budget))}; expected resource, and ratio or value."
            )
        return Budget(**budget)
    if isinstance(budget, Integral) and not isinstance(budget, bool):
        return Budget("flops", value=int(budget))
    if isinstance(budget, Real) and not isinstance(budget, bool):
        return Budget("flops", ratio=_checked_ratio(float(budget), "budget"))
    raise BudgetTypeError(
        f"budget: got {got(budget)}; expected a float in (0, 1] (a share of the FLOPs), an int "
        "(an absolute number of FLOPs), a Budget(resource, ratio=... or value=...), or a list of Budgets."
    )


def _checked_ratio(ratio: object, where: str) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise BudgetTypeError(f"{where}: got {got(ratio)}; expected a number in (0, 1].")
    ratio = _as_float(ratio)
    if not 0 < ratio <= 1:
        hint = (
            "an absolute number of FLOPs is written as an int" if ratio > 1 else "a network cannot be pruned to nothing"
        )
        raise BudgetError(f"{where}: a share of {ratio:g} is outside (0, 1]; {hint}.")
    return ratio


def _checked_value(value: object, resource: str) -> float:
    where = f"Budget({resource!r}, value=...)"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BudgetTypeError(f"{where}: got {got(value)}; expected {unit_of(resource)}.")
    number = _as_float(value)
    if not math.isfinite(number) or number <= 0:
        raise BudgetError(f"{where}: got {got(value)}; expected more than 0 {unit_of(resource)}.")
    if number < RESOURCES.find(resource).least:
        raise BudgetError(
            f"{where}: got {value!r} {unit_of(resource)}; a share of the network's own {resource} is ratio={value!r}."
        )
    return int(number) if number.is_integer() else number


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _known() -> str:
    return ", ".join((*RESOURCES.list(), *(f"{alias} (for {name})" for alias, name in ALIASES.items())))
