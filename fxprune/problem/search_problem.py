"""What a search is asked, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fxprune.config.keys import NetAdaptConfig
from fxprune.problem.calibration import Calibration
from fxprune.problem.equal_widths import Sets
from fxprune.problem.inputs import coupled
from fxprune.problem.stock_widths import StockWidths
from fxprune.problem.width_grids import Grid
from fxprune.resources.budgets import Budget
from fxprune.resources.models import Resource
from passes import Coupling


class CoupledAnew:
    """Is pickled without its coupling, which holds functions of the analysis; `dense` is coupled again when asked."""

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "coupling"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)

    def __getattr__(self, name: str) -> object:
        known = vars(self)
        if name != "coupling" or "dense" not in known:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return known.setdefault(name, coupled(known["dense"], known["example_inputs"]))


@dataclass(frozen=True)
class Goal:
    """What a search was asked for before it went on to other budgets: `until` is the last round that aimed at these."""

    until: int
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class Problem(CoupledAnew):
    """What a search is asked. Nothing in it changes. `dense` is a module or a graph, as `form` says.

    calibration: the data by which units and widths are chosen and weights repaired; None where there are none. equal:
    sets of groups that get one width each. last_grids: the widths that may be taken where a round comes down to the
    budget. stock: how a Hugging Face configuration states the widths, where it must. earlier: goals that the search
    had before these budgets, in their order.
    """

    dense: nn.Module
    coupling: Coupling
    resources: tuple[Resource, ...]
    budgets: tuple[Budget, ...]
    start: dict[str, float]
    grids: dict[str, Grid]
    config: NetAdaptConfig
    seed: int
    example_inputs: object
    trains: bool
    evaluates: bool
    threads: int
    form: str = "graph"
    scope: tuple[str, ...] = ()
    calibration: Calibration | None = None
    equal: Sets = ()
    last_grids: dict[str, Grid] = field(default_factory=dict)
    stock: StockWidths | None = None
    earlier: tuple[Goal, ...] = ()

    def during(self, round: int) -> Problem:
        """As it was asked when that round was run."""
        goals = [goal for goal in self.earlier if round <= goal.until]
        return replace(self, budgets=goals[0].budgets) if goals else self

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "resources": ()}  # functions of the coupling, which only a search asks

    @property
    def limits(self) -> dict[str, float]:
        return {budget.resource: budget.limit(self.start[budget.resource]) for budget in self.budgets}

    def is_met(self, used: Mapping[str, float]) -> bool:
        """Whether a network that uses so much of each resource is within all budgets."""
        return all(used[name] <= limit for name, limit in self.limits.items())

    @property
    def strategy(self) -> str:
        """What a round proposes."""
        if self.config.strategy == "auto":
            return "netadapt" if self.calibration is None else "allocate"
        return self.config.strategy

    @property
    def screen(self) -> int | None:
        """How many candidates of a round are trained after all were compared without training; None: all are."""
        asked = self.config.screen
        if self.calibration is None or asked == "all":
            return None
        if not self.trains or not self.config.netadapt_max_iter:
            return 0
        return 1 if asked is None else int(asked)

    @property
    def scored(self) -> bool:
        """Whether candidates are run and compared by their outputs, not by the importance that they lose."""
        return self.evaluates or self.calibration is not None

    @property
    def moves(self) -> bool:
        """Whether training makes the network of a round one that the next round's are cut from."""
        return self.trains and self.screen != 0
