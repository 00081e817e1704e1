"""One joint plan a round: the least importance lost for the resource that must go."""

from __future__ import annotations

from fxprune.search.proposals import Proposal, bargains, propose_joint
from fxprune.search.strategies.protocol import Situation


def knapsack(now: Situation) -> list[Proposal]:
    """A greedy knapsack over all groups."""
    singles: list[Proposal] = []
    if not now.scored:
        singles = bargains(now.resources, now.widths, now.targets, now.limits, now.grids, now.lost, [])
        if any(proposal.meets for proposal in singles):
            return singles
    joint = propose_joint(now.resources, now.widths, now.targets, now.grids, now.lost)
    return [*singles, joint] if joint else singles
