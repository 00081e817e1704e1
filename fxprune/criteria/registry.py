"""What a criterion is, and how one is asked: units ranked by a function of the network, a group and the statistics."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fxprune.errors import ConfigError
from fxprune.registries import CRITERIA, call, is_foreign
from fxprune.resources.models import real_numbers
from fxprune.training.candidate import seeded
from passes import Coupling, Group, Statistics
from passes.arguments import got
from passes.stream.network_copies import clone


@dataclass(frozen=True)
class Ranking:
    """scores: of each unit, the higher the more needed. errors: entry w is what is lost at width w, 0 at full width."""

    scores: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Ranking:
        """Of scores that add up: what is lost is the share of the sum that goes."""
        kept = np.concatenate([[0.0], np.cumsum(np.sort(scores)[::-1])])
        total = kept[-1] if kept[-1] > 0 else 1.0
        return cls(scores, np.maximum(0.0, (kept[-1] - kept) / total))


Criterion = Callable[..., "np.ndarray | Ranking"]
"""``f(network, group, statistics=None)``: a score for each unit, (group.size,), higher is more needed; or a `Ranking`.

`statistics` is what `passes.observe` found, None where no data were given. A criterion of the user's gets a copy of the
network and of the group each time, which it may change (gradients, modes, running statistics). One that draws random
numbers takes them from numpy's or torch's global generator, which are seeded for each group.
"""


def rank(
    criterion: str | Criterion, network: nn.Module, group: Group, statistics: Statistics | None = None, *, seed: int = 0
) -> Ranking:
    """The ranking of a group's units. Raises ConfigError where the criterion fails, or gives no finite score a unit."""
    where, function = f"{CRITERIA.said(criterion)}: group {group.name}", CRITERIA.find(criterion)
    given = group
    if is_foreign(function):
        network, given = clone(network), copy.deepcopy(group)
        statistics = statistics and replace(statistics, network=network)
    digest = hashlib.sha256(f"{seed}/{group.name}".encode()).digest()
    with seeded(int.from_bytes(digest[:4], "little")):
        made: object = call(function, where, CRITERIA.expected, network, given, statistics=statistics)
    ranking = made if isinstance(made, Ranking) else None
    returned = made if ranking is None else ranking.scores
    scores, wrong = real_numbers(returned), ""
    if scores is None:
        wrong = got(returned)
    elif scores.shape != (group.size,):
        wrong = f"scores with shape {scores.shape}"
    elif not np.isfinite(scores).all():
        wrong = "scores with NaN or infinity"
    if scores is None or wrong:
        raise ConfigError(f"{where}: got {wrong}; expected {group.size} finite numbers, one a unit.")
    if scores.dtype.kind == "b":  # whether each is needed: no difference of two truths is defined
        scores = scores.astype(np.float64)
    if ranking is None:
        return Ranking.of(scores)
    errors = real_numbers(ranking.errors)
    if errors is None or errors.shape != (group.size + 1,) or np.isnan(errors).any():
        raise ConfigError(
            f"{where}: got {got(ranking.errors)} as the errors of a Ranking; "
            f"expected {group.size + 1} numbers, one a width from 0 on."
        )
    return Ranking(scores, errors)


def ranked(
    network: nn.Module, coupling: Coupling, criterion: str | Criterion = "l2_norm", *, seed: int = 0
) -> Coupling:
    """`coupling` with the units of each group that has outer blocks (heads, convolution groups) formed by rank.

    Unit 0 is then every block's own best, so that each block keeps what it needs most; only the counts must agree.
    """
    orders = {}
    for group in coupling.groups:
        if group.blocks > 1:
            blocks = [
                replace(group, slices=tuple(replace(s, index=s.index[:, s.blocks == block]) for s in group.slices))
                for block in range(group.blocks)
            ]
            scores = np.stack([rank(criterion, network, block, seed=seed).scores for block in blocks])
            orders[group.name] = np.argsort(-scores, axis=1, kind="stable")
    return coupling.formed(orders)


def observed(statistics: Statistics | None, name: str) -> Statistics:
    """The statistics. Raises ConfigError where there are none, in the name of the criterion that needs them."""
    if statistics is None:
        raise ConfigError(f"criterion {name!r} ranks by data; pass calibration batches, or take one of the weights.")
    return statistics
