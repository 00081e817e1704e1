"""Joint proposals by curves: the widths of least error within the limits, over several sets of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxprune.criteria.weight_norms import producer_count
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Resource
from fxprune.search.allocation import allocate
from fxprune.search.proposals import Proposal, evaluate
from passes import Coupling


def propose_allocated(
    resources: Sequence[Resource], coupling: Coupling, widths: Mapping[str, int], targets: Mapping[str, float],
    grids: Mapping[str, Grid], lost: Mapping[str, np.ndarray],
) -> list[Proposal]:  # fmt: skip
    """One proposal for all groups, and one for those alone that a single layer produces.

    A residual stream is cut in every block at once, and what a curve says of it alone is least sure: whether it should
    be cut at all is for the candidates' own outputs to say.
    """
    inner = {name: grid for name, grid in grids.items() if producer_count(coupling.group(name)) == 1}
    made: list[Proposal] = []
    for chosen in (grids, inner) if len(inner) < len(grids) else (grids,):
        found = allocate(resources, widths, targets, chosen, lost) if chosen else None
        if found and all(proposal.widths != found for proposal in made):
            made.append(Proposal(found, evaluate(resources, {**widths, **found}), True))
    return made
