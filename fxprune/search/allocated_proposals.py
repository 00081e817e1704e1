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

SHARES = (1.0, 0.3)  # of the errors of residual blocks


def propose_allocated(
    resources: Sequence[Resource], coupling: Coupling, widths: Mapping[str, int], targets: Mapping[str, float],
    grids: Mapping[str, Grid], lost: Mapping[str, np.ndarray], within: Mapping[str, tuple[str, ...]],
) -> list[Proposal]:  # fmt: skip
    """One proposal for all groups, and one for those alone that a single layer produces.

    A residual stream is cut in every block at once, and what a curve says of it alone is least sure: whether it should
    be cut at all is for the candidates' own outputs to say. Where residual blocks may go, the same with them, at the
    errors that were measured for them and at shares of these: several gone at once are repaired together, and how well
    no curve says.
    """
    blocks = {name: grid for name, grid in grids.items() if name in within}
    groups = {name: grid for name, grid in grids.items() if name not in within}
    inner = {name: grid for name, grid in groups.items() if producer_count(coupling.group(name)) == 1}
    made: list[Proposal] = []
    chosen_sets = [(chosen, 1.0) for chosen in ((groups, inner) if len(inner) < len(groups) else (groups,))]
    chosen_sets += [
        ({**chosen, **blocks}, share) for share in (SHARES if blocks else ()) for chosen, _ in chosen_sets[:2]
    ]
    for chosen, share in chosen_sets:
        errors = {**lost, **{name: share * lost[name] for name in blocks}}
        found = allocate(resources, widths, targets, chosen, errors, within) if chosen else None
        if found and all(proposal.widths != found for proposal in made):
            made.append(Proposal(found, evaluate(resources, {**widths, **found}), True))
    return made
