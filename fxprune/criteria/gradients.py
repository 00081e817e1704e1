"""Importance by gradients: what the loss changes by if a unit goes, to first order."""

from __future__ import annotations

import numpy as np

from fxprune.criteria.registry import Evidence, Ranking, criterion
from fxprune.errors import ConfigError
from passes import Group


@criterion("fisher")
def fisher(evidence: Evidence, group: Group) -> Ranking:
    """The mean over small batches of (g.w)^2, g.w being summed over all that makes the unit (Liu et al., ICML 2021)."""
    return Ranking.of(_sums(evidence, group, "fisher"))


@criterion("taylor")
def taylor(evidence: Evidence, group: Group) -> Ranking:
    """The mean over small batches of abs(g.w) (Molchanov et al., CVPR 2019)."""
    return Ranking.of(_sums(evidence, group, "taylor"))


def _sums(evidence: Evidence, group: Group, name: str) -> np.ndarray:
    sums = getattr(evidence.observed(name), name)
    if group.name not in sums:
        raise ConfigError(f"criterion {name!r} needs gradients; observe with gradients=loss, or gradients='sampled'")
    return sums[group.name]
