"""Every way to write a budget, what is refused, and the schedule in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fxprune.config.schedule import Schedule, check_feasible
from fxprune.errors import BudgetError, BudgetTypeError, InfeasibleBudget
from fxprune.resources.budgets import Budget, parse_budget


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (0.5, Budget("flops", ratio=0.5)),
        (1.0, Budget("flops", ratio=1.0)),
        (1_000_000, Budget("flops", value=1_000_000)),
        (1, Budget("flops", value=1)),
        (np.float32(0.5), Budget("flops", ratio=0.5)),
        (np.int64(7), Budget("flops", value=7)),
        (Budget("weights", ratio=0.3), Budget("params", ratio=0.3)),
        ({"resource": "latency", "value": 3.5}, Budget("latency", value=3.5)),
    ],
)
def test_reads(written: object, read: Budget) -> None:
    assert parse_budget(written) == (read,)


def test_several() -> None:
    both = [Budget("latency", ratio=0.6), Budget("params", value=2_000_000)]
    assert parse_budget(both) == tuple(both)
    assert parse_budget((0.5, {"resource": "memory", "ratio": 0.9}))[1] == Budget("memory", ratio=0.9)
    with pytest.raises(BudgetError, match="params is budgeted twice"):
        parse_budget([Budget("params", ratio=0.5), Budget("weights", ratio=0.4)])


@pytest.mark.parametrize("wrong", [True, "0.5", None, {1, 2}, object(), b"1", 1j])
def test_wrong_type_says_what_is_expected(wrong: object) -> None:
    with pytest.raises(BudgetTypeError, match=r"expected a float in \(0, 1\]"):
        parse_budget(wrong)


@pytest.mark.parametrize("wrong", [0.0, 1.5, -0.1, float("nan"), float("inf"), 0, -3, []])
def test_wrong_value(wrong: object) -> None:
    with pytest.raises(BudgetError):
        parse_budget(wrong)


def test_wrong_keywords() -> None:
    with pytest.raises(BudgetError, match="neither of ratio and value"):
        Budget("flops")
    with pytest.raises(BudgetError, match="both of ratio and value"):
        Budget("flops", ratio=0.5, value=10)
    with pytest.raises(BudgetError, match="Did you mean 'params'"):
        Budget("param", ratio=0.5)
    with pytest.raises(BudgetTypeError):
        Budget(0.5, ratio=0.5)  # type: ignore[arg-type]
    with pytest.raises(BudgetTypeError):
        Budget("flops", ratio=True)
    with pytest.raises(BudgetError, match="ratio=0.5"):
        Budget("params", value=0.5)
    assert Budget("latency", value=0.5).limit(9.0) == 0.5
    with pytest.raises(BudgetError, match="keys"):
        parse_budget({"resource": "flops", "share": 0.5})


def test_limit() -> None:
    assert Budget("macs", ratio=0.25).limit(1000) == 250
    assert Budget("macs", value=70).limit(1000) == 70


def test_the_papers_schedule_has_a_limit_of_about_0_53() -> None:
    assert Schedule(0.025, 0.96).limit() == pytest.approx(0.53, abs=0.005)


@pytest.mark.parametrize("base", ["current", "initial"])
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_limit_is_what_many_rounds_come_to(base: str, decay: float) -> None:
    schedule = Schedule(0.05, decay, base)
    left = 1.0
    for n in range(1, 4000):
        left = schedule.target(n, start=1.0, achieved=left, budget=0.0)
    assert schedule.limit() == pytest.approx(left, abs=1e-12)


def test_targets() -> None:
    current, initial = Schedule(0.1, 0.5), Schedule(0.1, 0.5, "initial")
    assert current.target(2, start=1000, achieved=800, budget=1) == pytest.approx(800 * 0.95)
    assert initial.target(2, start=1000, achieved=800, budget=1) == pytest.approx(750)
    assert current.target(1, start=1000, achieved=1000, budget=950) == 950
    assert Schedule(0.5, 1.0).rounds(0.25) == 2
    assert Schedule(0.025, 0.96).rounds(0.4) is None
    assert Schedule(0.1, 1.0).limit() == 0.0


def test_infeasible_by_the_schedule_names_a_budget_that_is_feasible() -> None:
    schedule, start, least = Schedule(0.025, 0.96), {"flops": 1_000_000}, {"flops": 1000}
    with pytest.raises(InfeasibleBudget, match="budget_reduce_rate_init") as caught:
        check_feasible(parse_budget(0.4), start, least, schedule)
    nearest = caught.value.nearest["flops"]
    assert nearest == math.ceil(schedule.limit() * 1_000_000)
    check_feasible(parse_budget(int(nearest)), start, least, schedule)


def test_infeasible_by_least_widths_and_pairs() -> None:
    start, least = {"flops": 1000, "params": 500}, {"flops": 300, "params": 450}
    budgets = parse_budget([Budget("flops", ratio=0.4), Budget("params", ratio=0.5)])
    with pytest.raises(InfeasibleBudget, match="params: with every prunable group at its least width") as caught:
        check_feasible(budgets, start, least, Schedule(0.1, 1.0))
    assert caught.value.nearest == {"params": 450}
    check_feasible(
        parse_budget([Budget("flops", ratio=0.4), Budget("params", ratio=0.9)]), start, least, Schedule(0.1, 1.0)
    )
