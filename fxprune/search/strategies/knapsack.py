"""One joint plan a round: the least importance lost for the resource that must go."""

from __future__ import annotations

from fxprune.search.proposals import Proposal, propose_joint
from fxprune.search.strategies.protocol import Situation


def knapsack(now: Situation) -> list[Proposal]:
    """A greedy knapsack over all groups."""
    joint = propose_joint(now.resources, now.widths, now.targets, now.grids, now.lost)
    return [joint] if joint else []
