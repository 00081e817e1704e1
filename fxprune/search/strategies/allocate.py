"""Joint plans to the target at once: the widths of least summed error by the groups' curves."""

from __future__ import annotations

from fxprune.search.allocated_proposals import propose_allocated
from fxprune.search.proposals import Proposal, propose_joint
from fxprune.search.strategies.protocol import Situation


def allocate(now: Situation) -> list[Proposal]:
    """Integer programmes over the curves."""
    found = propose_allocated(now.resources, now.coupling, now.widths, now.targets, now.grids, now.lost, now.within)
    if found:
        return found
    # a resource that no sum over groups comes near to, such as a peak of memory
    joint = propose_joint(now.resources, now.widths, now.targets, now.grids, now.lost)
    return [joint] if joint else []
