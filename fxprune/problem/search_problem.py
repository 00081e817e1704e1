"""What a search is asked, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune.config.keys import NetAdaptConfig
from fxprune.problem.width_grids import Grid
from fxprune.resources.budgets import Budget
from fxprune.resources.models import Resource
from passes import Coupling


@dataclass(frozen=True)
class Problem:
    """What a search is asked. Nothing in it changes. `dense` is a module or a graph, as `form` says."""

    dense: nn.Module
    coupling: Coupling
    resources: tuple[Resource, ...]
    budgets: tuple[Budget, ...]
    start: dict[str, float]
    grids: dict[str, Grid]
    config: NetAdaptConfig
    seed: int
    example_inputs: Any
    trains: bool
    evaluates: bool
    threads: int
    form: str = "graph"
    scope: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, float]:
        return {budget.resource: budget.limit(self.start[budget.resource]) for budget in self.budgets}
