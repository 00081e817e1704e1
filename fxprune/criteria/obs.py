"""Structured optimal brain surgeon: one order and one error curve a group, over all that read it."""

from __future__ import annotations

import numpy as np
from torch import nn

from fxprune.criteria.registry import Ranking, observed
from fxprune.criteria.weights import l2_norm
from passes import Group, Statistics
from passes.graph.module_copies import owned_tensors
from passes.statistics.elimination import eliminate


def obs(network: nn.Module, group: Group, statistics: Statistics | None = None) -> Ranking | np.ndarray:
    """The order in which units go when those that stay make good for them (see `passes.statistics.elimination`).

    A group that no observed weight reads is ranked by the norms of its weights.
    """
    seen = observed(statistics, "obs")
    found = eliminate(group, seen.coupled(), seen, dict(owned_tensors(network)))
    return l2_norm(network, group) if found is None else Ranking(found.ranks, found.errors)
