"""Structured optimal brain surgeon: one order and one error curve a group, over all that read it."""

from __future__ import annotations

from fxprune.criteria.registry import Evidence, Ranking, criterion
from fxprune.criteria.weights import by_weights
from passes import Group
from passes.graph.module_copies import owned_tensors
from passes.statistics.elimination import eliminate


@criterion("obs")
def obs(evidence: Evidence, group: Group) -> Ranking:
    """The order in which units go when those that stay make good for them (see `passes.statistics.elimination`).

    A group that no observed weight reads is ranked by the norms of its weights.
    """
    weights = dict(owned_tensors(evidence.network))
    found = eliminate(group, evidence.coupling, evidence.observed("obs"), weights)
    return by_weights(evidence, group) if found is None else Ranking(found.ranks, found.errors)
