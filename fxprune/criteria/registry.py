"""The protocol of a criterion, and the table of those that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from fxprune.errors import ConfigError
from passes import Coupling, Group, Statistics


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. statistics: None where no data were observed."""

    network: nn.Module
    coupling: Coupling
    statistics: Statistics | None = None
    seed: int = 0

    def observed(self, name: str) -> Statistics:
        """The statistics. Raises ConfigError where there are none, in the name of the criterion that needs them."""
        if self.statistics is None:
            raise ConfigError(f"criterion {name!r} ranks by data; pass calibration batches, or take one of the weights")
        return self.statistics


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


Criterion = Callable[[Evidence, Group], Ranking]
CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under a name. Raises ConfigError for a name that is taken."""

    def register(function: Criterion) -> Criterion:
        if name in CRITERIA:
            raise ConfigError(f"there is a criterion {name!r} already; choose another name")
        CRITERIA[name] = function
        return function

    return register
