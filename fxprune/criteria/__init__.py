"""Criteria: which units of a group matter. Each is a function in a file of its own, registered by name.

A criterion takes `Evidence` (the dense network, its coupling, and what was observed of it) and a group, and gives a
`Ranking`: a score for each unit, the higher the more needed, and what the group loses at each width.

>>> sorted(CRITERIA)
['activation', 'bn_scale', 'fisher', 'fpgm', 'l1_norm', 'l2_norm', 'obs', 'random', 'taylor']
"""

from fxprune.criteria.activation import activation
from fxprune.criteria.gradients import fisher, taylor
from fxprune.criteria.obs import obs
from fxprune.criteria.registry import CRITERIA, Criterion, Evidence, Ranking, criterion
from fxprune.criteria.weights import by_weights

__all__ = [
    "CRITERIA", "Criterion", "Evidence", "Ranking", "activation", "by_weights", "criterion", "fisher", "obs", "taylor",
]  # fmt: skip
