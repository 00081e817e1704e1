"""What a network loses with a residual block, by its weights: its share of what is added to the stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from fxprune.criteria.registry import Criterion, Ranker
from fxprune.criteria.weight_norms import producer_count
from passes import Coupling


def block_importance_lost(
    network: nn.Module, coupling: Coupling, name: str, criterion: str | Criterion, seed: int = 0
) -> np.ndarray:
    """The loss without the block (entry 0) and with it (entry 1), on the scale of `importance_lost`.

    The importance of the stream's units is a sum over the weights that produce them; the block's share of it is lost.
    Where the stream is no group, each of its blocks has the same share.
    """
    ranker = Ranker(criterion, network, seed=seed)
    own = set(coupling.blocks[name].tensors)
    for group in coupling.groups:
        made = [item for item in group.slices if item.role == "output"]
        mine = [item for item in made if item.tensor in own]
        if mine and len(mine) < len(made):
            shares = [replace(group, slices=tuple(some)) for some in (mine, made)]
            part, whole = (ranker(some).scores.sum() for some in shares)
            return np.array(
                [-producer_count(group) * np.log1p(-min(part / whole, 1 - 1e-12)) if whole > 0 else 0.0, 0.0]
            )
    alike = len(coupling.blocks) + 1  # what enters the stream first counts as one of them
    return np.array([-alike * np.log1p(-1 / alike), 0.0])
