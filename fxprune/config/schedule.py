"""The schedule of targets, in closed form: what each round aims at, and what no number of rounds can reach.

Yang et al., NetAdapt, ECCV 2018, section 3.1; the decay is that of their published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fxprune.errors import InfeasibleBudget
from fxprune.resources.budgets import Budget
from fxprune.resources.kinds import unit_of


@dataclass(frozen=True)
class Schedule:
    """How much each round lowers a resource: by `rate * decay ** (round - 1)`, of the current or the initial value.

    >>> schedule = Schedule(rate=0.025, decay=0.96)
    >>> round(schedule.limit(), 2)      # exact hits never get below this share of the start
    0.53
    >>> schedule.target(1, start=29232, achieved=29232, budget=10000)
    28501.2
    """

    rate: float
    decay: float
    base: str = "current"

    def reduction(self, round: int) -> float:
        """The share by which round 1, 2, ... lowers the resource."""
        return self.rate * self.decay ** (round - 1)

    def target(self, round: int, *, start: float, achieved: float, budget: float) -> float:
        """What a round aims at; never below the budget. Overshoot of earlier rounds carries forward."""
        if self.base == "initial":
            aim = achieved - start * self.reduction(round)
        else:
            aim = achieved * (1 - self.reduction(round))
        return max(aim, budget)

    def after(self, rounds: int) -> float:
        """The share of the start that is left after so many rounds that hit their targets exactly."""
        shares = [self.reduction(n) for n in range(1, rounds + 1)]
        if self.base == "initial":
            return max(0.0, 1 - sum(shares))
        return math.prod(1 - share for share in shares)

    def limit(self) -> float:
        """The share of the start below which rounds that hit their targets exactly never get."""
        if self.decay >= 1:
            return 0.0
        if self.base == "initial":
            return max(0.0, 1 - self.rate / (1 - self.decay))
        terms = math.ceil(math.log(1e-18 / self.rate) / math.log(self.decay))
        return self.after(max(1, terms))

    def rounds(self, share: float, most: int = 10_000) -> int | None:
        """How many rounds of exact hits come down to a share of the start; None if more than `most`."""
        left, n = 1.0, 0
        while left > share:
            n += 1
            if n > most or self.reduction(n) < 1e-15:
                return None
            left = left - self.reduction(n) if self.base == "initial" else left * (1 - self.reduction(n))
        return n


def check_feasible(
    budgets: tuple[Budget, ...],
    start: Mapping[str, float],
    least: Mapping[str, float],
    schedule: Schedule | None,
) -> None:
    """Refuse budgets that the schedule or the least widths cannot reach, before anything is trained.

    `start` and `least` are each resource of the network as it is, and with every group at its least width. Resources
    only fall as widths do, so several budgets can be met together exactly if each can be met alone. schedule: None
    where the search goes to the budget at once.
    """
    faults: list[str] = []
    nearest: dict[str, float] = {}
    for budget in budgets:
        name, unit, limit = budget.resource, unit_of(budget.resource), budget.limit(start[budget.resource])
        if limit >= start[name]:
            continue
        floors = []
        if schedule is not None and limit < (by_schedule := schedule.limit() * start[name]):
            floors.append(by_schedule)
            faults.append(
                f"{name}: rounds that lower it by {schedule.rate:g}, decaying by {schedule.decay:g}, never get below "
                f"{_shown(by_schedule, start[name], unit)}; raise budget_reduce_rate_init or budget_reduce_rate_decay"
            )
        if limit < least[name]:
            floors.append(least[name])
            faults.append(
                f"{name}: with every prunable group at its least width the network uses "
                f"{_shown(least[name], start[name], unit)}; "
                "lower netadapt_min_feature_size, step or round_to, or let more layers be pruned "
                "(exclude, max_prune, sparsity)"
            )
        if floors:
            nearest[name] = _round_up(max(floors), unit)
    if not faults:
        return
    asked = " and ".join(str(budget) for budget in budgets if budget.resource in nearest)
    offer = " and ".join(
        f"{name} {value:,} (ratio={math.ceil(value / start[name] * 1e4) / 1e4:.4f})" for name, value in nearest.items()
    )
    raise InfeasibleBudget(
        f"The budget of {asked} cannot be met. {'. '.join(faults)}. The nearest feasible budget: {offer}.", nearest
    )


def _round_up(value: float, unit: str) -> float:
    return math.ceil(value * 1e4) / 1e4 if unit == "ms" else math.ceil(value)


def _shown(value: float, start: float, unit: str) -> str:
    number = f"{value:.4g}" if unit == "ms" else f"{math.ceil(value):,}"
    return f"{number} {unit} ({value / start:.2%} of the start)"
