"""A resource that gives no finite number is refused in words: at the start, and at the widths that a round tries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from small_search import EXAMPLE, FAST, make
from torch import nn

from fxprune import Budget, netadapt
from fxprune.errors import BudgetError


class Invented:
    """A resource that sums the widths, but for those below `least`."""

    name, unit = "latency", "u"

    def __init__(self, otherwise: Any, least: int = 10**9, monotone: bool = True, measured: Any = None) -> None:
        self.otherwise, self.least, self.monotone, self.measured = otherwise, least, monotone, measured

    def value(self, widths: Any = None) -> Any:
        small = np.minimum.reduce(np.broadcast_arrays(*widths.values())) < self.least
        return np.where(small, self.otherwise, sum(widths.values()))


class Measured(Invented):
    """The same, which can be measured on a network too."""

    def measure(self, network: nn.Module, example_inputs: object) -> Any:
        return self.measured

    def calibrated(self, predicted: float, measured: float) -> Measured:
        return self


def searched(resource: Invented, *others: Budget, **settings: Any) -> object:
    budgets = [*others, Budget("latency", ratio=0.6)]
    config = FAST.replace(**settings)
    return netadapt(make(), budgets, example_inputs=EXAMPLE, resources=[resource], config=config, progress=False)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_at_the_start(wrong: object) -> None:
    for others in ((), (Budget("macs", ratio=0.7),)):
        with pytest.raises(BudgetError, match=rf"resource 'latency': its value at the widths .*=.* is .*{wrong}"):
            searched(Invented(wrong), *others)


@pytest.mark.parametrize("settings", [{}, {"strategy": "uniform"}, {"strategy": "knapsack"}, {"strategy": "allocate"}])
@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_at_widths_that_are_tried(settings: dict[str, str], monotone: bool, wrong: float) -> None:
    with pytest.raises(BudgetError, match=rf"resource 'latency': .* is {wrong}; expected a finite number \(u\)"):
        searched(Invented(wrong, 6, monotone), **settings)


def test_in_a_measurement() -> None:
    with pytest.raises(BudgetError, match="resource 'latency': its measurement of the network .* is inf"):
        searched(Measured(0.0, least=0, measured=math.inf))
