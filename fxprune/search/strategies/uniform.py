"""All groups shrunk by one share."""

from __future__ import annotations

from fxprune.search.proposals import Proposal, propose_uniform
from fxprune.search.strategies.protocol import Situation


def uniform(now: Situation) -> list[Proposal]:
    """One proposal: the largest share of every group that meets the target."""
    proposal = propose_uniform(now.resources, now.widths, now.targets, now.grids, now.start_widths)
    return [proposal] if proposal else []
