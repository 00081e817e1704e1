"""Importance by activations: how large a unit is where it is read, whatever the weights do with it."""

from __future__ import annotations

import numpy as np
from torch import nn

from fxprune.criteria.registry import observed
from fxprune.criteria.weights import l2_norm
from passes import Group, Statistics
from passes.statistics.elimination import unit_columns


def activation(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The second moment of a unit where weights read it, relative to that of all units, summed over its readers.

    A group that no observed weight reads is ranked by the norms of its weights.
    """
    seen = observed(statistics, "activation")
    total = np.zeros(group.size)
    found = False
    for site in seen.sites.values():
        columns = unit_columns(site, group, seen.coupled())
        moments = seen.of(site)
        if columns is None or moments.is_empty:
            continue
        sizes = np.zeros(group.size)
        for number, units in enumerate(columns):
            diagonal = moments.matrix(number).diagonal()[:-1].cpu().numpy()
            used = units.numpy() >= 0
            np.add.at(sizes, units.numpy()[used], diagonal[used])
        if sizes.sum() > 0:
            total += sizes / sizes.sum()
            found = True
    return total if found else l2_norm(network, group)
