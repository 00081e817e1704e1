"""What a criterion is, and how one is asked: units ranked by a function of the network, a group and the statistics."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fxprune.errors import ConfigError
from fxprune.io.lent import Lent
from fxprune.registries import CRITERIA, call, is_foreign
from fxprune.resources.models import real_numbers
from fxprune.training.candidate import seeded
from passes import Coupling, Group, Statistics
from passes.arguments import got


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
network, with its gradients, and of the group, which it may change (gradients, modes, running statistics); the next
group has them as they were. What was computed before is to be kept by the names of parameters or modules: the copy has
other objects. One that draws random numbers takes them from numpy's or torch's global generator, seeded for each group.
"""


def rank(
    criterion: str | Criterion, network: nn.Module, group: Group, statistics: Statistics | None = None, *, seed: int = 0
) -> Ranking:
    """The ranking of a group's units. Raises ConfigError where the criterion fails, or gives no finite score a unit."""
    return Ranker(criterion, network, statistics, seed=seed)(group)


class Ranker:
    """`rank` of several groups of one network: a criterion of the user's gets one copy of it for them all."""

    def __init__(
        self, criterion: str | Criterion, network: nn.Module, statistics: Statistics | None = None, *, seed: int = 0
    ) -> None:
        self.function, self.said = CRITERIA.find(criterion), CRITERIA.said(criterion)
        self.statistics, self.seed = statistics, seed
        self._lent = Lent(self.function, network)

    def __call__(self, group: Group) -> Ranking:
        where, network = f"{self.said}: group {group.name}", self._lent.network()
        given, statistics = group, self.statistics
        if is_foreign(self.function):
            given, statistics = copy.deepcopy(group), statistics and replace(statistics, network=network)
        digest = hashlib.sha256(f"{self.seed}/{group.name}".encode()).digest()
        with seeded(int.from_bytes(digest[:4], "little")):
            made: object = call(self.function, where, CRITERIA.expected, network, given, statistics=statistics)
        return _checked(made, group, where)


def _checked(made: object, group: Group, where: str) -> Ranking:
    """What a criterion gave, as a ranking of the group's units."""
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
    orders, ranker = {}, Ranker(criterion, network, seed=seed)
    for group in coupling.groups:
        if group.blocks > 1:
            blocks = [
                replace(group, slices=tuple(replace(s, index=s.index[:, s.blocks == block]) for s in group.slices))
                for block in range(group.blocks)
            ]
            scores = np.stack([ranker(block).scores for block in blocks])
            orders[group.name] = np.argsort(-scores, axis=1, kind="stable")
    return coupling.formed(orders)


def observed(statistics: Statistics | None, name: str) -> Statistics:
    """The statistics. Raises ConfigError where there are none, in the name of the criterion that needs them."""
    if statistics is None:
        raise ConfigError(f"criterion {name!r} ranks by data; pass calibration batches, or take one of the weights.")
    return statistics
