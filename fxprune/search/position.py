"""Where a search stands between two rounds, and the plan of a candidate from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from fxprune.criteria.weight_norms import keep_units
from fxprune.journal.records import Candidate
from fxprune.problem.blocks import plan_without
from fxprune.resources.models import Resource
from fxprune.search.observed import Observed
from passes import Coupling, Plan

Ranks = dict[str, np.ndarray]
"""For each group a number a unit, or a width."""


@dataclass(frozen=True)
class Position:
    """Where a search stands after some rounds: its widths, and what they use.

    network: what candidates are cut from; `plan` makes it of the unpruned one. Where candidates are trained it is that
    of the last round, else the unpruned one: what is cut and repaired at once is nearest to it, and weights that
    nothing changes need no copy. observed: what the data say of it. ranks: without data, how its units are ranked.
    """

    network: nn.Module
    coupling: Coupling
    plan: Plan
    widths: dict[str, int]
    resources: tuple[Resource, ...]
    achieved: dict[str, float]
    score: float
    lost: float
    observed: Observed | None = None
    ranks: Ranks | None = None

    @property
    def narrowed(self) -> dict[str, int]:
        """The groups that are narrower than those of `network`, and the blocks that are to go."""
        full = self.coupling.full_widths
        return {name: width for name, width in self.widths.items() if width < full.get(name, 0)}


def plan_of(position: Position, candidate: Candidate, scores: Mapping[str, np.ndarray]) -> Plan:
    """The plan of a candidate, relative to the network of the round: the most important units of each group it
    shrinks."""
    widths = {**position.narrowed, **candidate.widths}
    keep = {n: keep_units(scores[n], width) for n, width in widths.items() if n in position.coupling.variables}
    return plan_without(position.coupling, keep, widths)


def score_of_chosen(candidate: Candidate) -> float:
    assert candidate.score is not None, "only scored candidates are chosen"
    return candidate.score
