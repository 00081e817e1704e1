"""Importance by activations: how large a unit is where it is read, whatever the weights do with it."""

from __future__ import annotations

import numpy as np

from fxprune.criteria.registry import Evidence, Ranking, criterion
from fxprune.criteria.weights import by_weights
from passes import Group
from passes.statistics.elimination import unit_columns


@criterion("activation")
def activation(evidence: Evidence, group: Group) -> Ranking:
    """The second moment of a unit where weights read it, relative to that of all units, summed over its readers.

    A group that no observed weight reads is ranked by the norms of its weights.
    """
    statistics = evidence.observed("activation")
    total = np.zeros(group.size)
    found = False
    for site in statistics.sites.values():
        columns = unit_columns(site, group, evidence.coupling)
        moments = statistics.of(site)
        if columns is None or not moments.tiles:
            continue
        sizes = np.zeros(group.size)
        for number, units in enumerate(columns):
            diagonal = moments.matrix(number).diagonal()[:-1].cpu().numpy()
            used = units.numpy() >= 0
            np.add.at(sizes, units.numpy()[used], diagonal[used])
        if sizes.sum() > 0:
            total += sizes / sizes.sum()
            found = True
    return Ranking.of(total) if found else by_weights(evidence, group)
