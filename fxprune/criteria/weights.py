"""Today's metrics of the weights alone, as criteria."""

from __future__ import annotations

from functools import partial

from fxprune.criteria.registry import CRITERIA, Evidence, Ranking
from fxprune.criteria.weight_norms import METRICS, importance
from passes import Group


def by_weights(evidence: Evidence, group: Group, metric: str = "l2_norm") -> Ranking:
    """The importance of each unit by a metric of its weights (see `fxprune.criteria.weight_norms`)."""
    return Ranking.of(importance(evidence.network, group, metric, seed=evidence.seed))


CRITERIA.update({metric: partial(by_weights, metric=metric) for metric in METRICS})
