"""The paper's strategy: each group alone, shrunk until the target of the round is met."""

from __future__ import annotations

from fxprune.search.proposals import Proposal, bargains, propose, propose_joint
from fxprune.search.strategies.protocol import Situation


def netadapt(now: Situation) -> list[Proposal]:
    """One proposal a group (Yang et al., NetAdapt, ECCV 2018, Algorithm 1); several at once where none suffices.

    Where nothing is scored, several at once always compete: in a network of many equal layers no layer alone can give
    what a round asks for at a fair price, and the residual stream, which all of them share, would be cut for that.
    """
    singles = list(propose(now.resources, now.widths, now.targets, now.grids))
    if not now.scored:  # a price is known for every width; what is to be evaluated is taken as the paper does
        singles = bargains(now.resources, now.widths, now.targets, now.limits, now.grids, now.lost, singles)
    if not now.joint or (now.scored and any(proposal.meets for proposal in singles)):
        return singles
    joint = propose_joint(now.resources, now.widths, now.targets, now.grids, now.lost)
    return [*singles, joint] if joint else singles
