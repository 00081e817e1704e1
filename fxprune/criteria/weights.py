"""Criteria of the weights alone."""

from __future__ import annotations

import numpy as np
from torch import nn

from fxprune.criteria.weight_norms import importance
from passes import Group, Statistics


def l1_norm(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The sum of absolute weights of a unit (Li et al., ICLR 2017)."""
    return importance(network, group, "l1_norm")


def l2_norm(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The Euclidean norm of a unit's weights: the choice of NetAdapt (Yang et al., ECCV 2018, section 3.2)."""
    return importance(network, group, "l2_norm")


def fpgm(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The sum of a unit's distances to all others: the nearest can be replaced by them (He et al., CVPR 2019)."""
    return importance(network, group, "fpgm")


def bn_scale(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """The scale of the normalisation that follows (Liu et al., ICCV 2017); without one the Euclidean norm."""
    return importance(network, group, "bn_scale")


def random(network: nn.Module, group: Group, statistics: Statistics | None = None) -> np.ndarray:
    """Any order, the same for the same seed and name of a group."""
    return np.random.random(group.size)
