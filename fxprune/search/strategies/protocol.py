"""What a strategy sees, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np

from fxprune.errors import ConfigError, SearchError
from fxprune.problem.width_grids import Grid
from fxprune.registries import STRATEGIES, is_foreign
from fxprune.resources.models import Resource
from fxprune.search.proposals import Proposal, evaluate
from passes import Coupling
from passes.arguments import is_a, listed


@dataclass(frozen=True)
class Situation:
    """Where a search stands at the start of a round.

    coupling: of the network as it is. widths, start_widths: of all groups, now and before the search. targets: what the
    round must meet, by resource. limits: what the search must meet. grids: the widths that each group may be given
    (``grids[group].below(width)``). lost: for each group an array whose entry w is what is lost at width w, by its
    curve where there are data, else by the importance of its units. scored: candidates are run and scored one by one;
    without it `lost` decides. joint: several groups may shrink in one proposal.
    within: for each residual block (a name with the widths 1 and 0) the groups and blocks that go with it.
    """

    coupling: Coupling
    resources: Sequence[Resource]
    widths: Mapping[str, int]
    start_widths: Mapping[str, int]
    targets: Mapping[str, float]
    limits: Mapping[str, float]
    grids: Mapping[str, Grid]
    lost: Mapping[str, np.ndarray]
    scored: bool = False
    joint: bool = True
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def apart(self) -> Situation:
        """The same with mappings and arrays of its own, for a strategy that may change them."""
        names = ("widths", "start_widths", "targets", "limits", "grids", "within")
        own: dict[str, Any] = {name: {**getattr(self, name)} for name in names}
        return replace(self, **own, lost={name: lost.copy() for name, lost in self.lost.items()})

    def used(self, widths: Mapping[str, int]) -> dict[str, float]:
        """What the network uses of each resource with some widths changed."""
        return evaluate(self.resources, {**self.widths, **widths})

    def proposal(self, widths: Mapping[str, int]) -> Proposal:
        """New widths of some groups as a proposal. Raises SearchError for widths that no group can be given."""
        if not widths:
            raise SearchError("a strategy proposes no width at all; expected new widths of some groups.")
        for name, width in widths.items():
            if (
                name not in self.grids
                or not isinstance(width, Integral)
                or width not in self.grids[name].below(self.widths[name])
            ):
                allowed = list(self.grids[name].below(self.widths[name])) if name in self.grids else []
                raise SearchError(f"a strategy proposes {width!r} units for group {name!r}; allowed are {allowed}.")
        used = self.used(widths)
        return Proposal(dict(widths), used, all(used[name] <= target for name, target in self.targets.items()))


Strategy = Callable[[Situation], "Sequence[Proposal | Mapping[str, int]]"]
"""A function of a `Situation` that returns proposals: new widths of some groups each, ``{group: width}``."""


def proposals_of(strategy: str | Strategy, situation: Situation) -> list[Proposal]:
    """What a strategy proposes, with what each proposal uses. Raises ConfigError, which names it, where it fails or
    gives anything but proposals, and SearchError for widths that no group can be given."""
    name = STRATEGIES.said(strategy)
    given = situation.apart() if is_foreign(STRATEGIES.find(strategy)) else situation
    made = listed(STRATEGIES.call(strategy, given), name, _EXPECTED, ConfigError)
    for one in made:
        is_a(one, Proposal | Mapping, f"{name}: a proposal", _EXPECTED, ConfigError)
    try:
        return [one if isinstance(one, Proposal) else situation.proposal(one) for one in made]
    except SearchError as error:
        raise SearchError(f"{name}: {error}") from None


_EXPECTED = "a list of proposals, new widths of some groups each, such as {'conv1': 16}"
