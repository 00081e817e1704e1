"""Importance by gradients: what the loss changes by if a unit goes, to first order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from fxprune.criteria.registry import observed
from fxprune.errors import ConfigError
from passes import Group, Statistics


def fisher(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The mean over small batches of (g.w)^2, g.w being summed over all that makes the unit (Liu et al., ICML 2021)."""
    return _sums(statistics, group, "fisher")


def taylor(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The mean over small batches of abs(g.w) (Molchanov et al., CVPR 2019)."""
    return _sums(statistics, group, "taylor")


def _sums(statistics: Statistics | None, group: Group, name: str) -> np.ndarray:
    sums: Mapping[str, np.ndarray] = getattr(observed(statistics, name), name)
    if group.name not in sums:
        raise ConfigError(f"criterion {name!r} needs gradients; observe with gradients=loss, or gradients='sampled'")
    return sums[group.name]
