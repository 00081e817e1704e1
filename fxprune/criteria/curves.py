"""What each width of each group costs in accuracy: local errors of elimination, on one scale by measured divergence.

Errors of different layers have no common scale. A few widths of each group are therefore tried alone: the network is
cut there, compensated and run on held-out samples, and the divergence of its outputs scales that group's curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fxprune.criteria.registry import Criterion, Ranker
from fxprune.criteria.weight_norms import keep_units
from passes import Coupling, Statistics, apply_plan, compensate
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of

log = logging.getLogger(__name__)
TRIED = (0.75, 0.5, 0.25, 0.1)  # shares of a group's units at which it is measured


@dataclass(frozen=True)
class Curve:
    """Of one group: the units in the order of their worth, and `errors[w]`, what the network loses at width w.

    measured: the divergence at the widths that were tried.
    """

    group: str
    scores: np.ndarray
    errors: np.ndarray
    measured: Mapping[int, float]

    def keep(self, width: int) -> tuple[int, ...]:
        """The units to keep at `width`."""
        return keep_units(self.scores, width)

    def to_dict(self) -> dict[str, object]:
        """As plain data, without loss."""
        measured = {str(width): error for width, error in self.measured.items()}
        return {"scores": self.scores.tolist(), "errors": self.errors.tolist(), "measured": measured}

    @classmethod
    def from_dict(cls, group: str, data: Any) -> Curve:
        """What `to_dict` made. Raises ValueError where `data` is no curve."""
        scores, errors = (np.array(data[key], dtype=np.float64) for key in ("scores", "errors"))
        if scores.ndim != 1 or errors.shape != (len(scores) + 1,):
            raise ValueError(f"the curve of {group} has {len(scores)} units and {len(errors)} errors")
        return cls(group, scores, errors, {int(width): float(error) for width, error in data["measured"].items()})


def curves(
    dense: nn.Module, coupling: Coupling, statistics: Statistics, held: Sequence[Batch], *,
    criterion: str | Criterion = "obs", groups: Sequence[str] | None = None, tried: Sequence[float] = TRIED,
    seed: int = 0, progress: Callable[[str], None] | None = None,
) -> dict[str, Curve]:  # fmt: skip
    """The curve of each group, and of each residual block of the coupling; or of those named.

    criterion: ranks the units and shapes the curve. held: samples that judge, and that no statistics have summed.
    """
    expected = outputs_of(dense, held)
    made, ranker = {}, Ranker(criterion, dense, statistics, seed=seed)
    for group in coupling.groups:
        if groups is not None and group.name not in groups:
            continue
        ranking = ranker(group)
        scores, local = ranking.scores, ranking.errors
        measured: dict[int, float] = {}
        for share in tried:
            width = group.multiple * max(-(-group.least // group.multiple), round(share * group.size / group.multiple))
            if width >= group.size or width in measured:
                continue
            plan = coupling.plan({group.name: keep_units(scores, width)})
            network = compensate(apply_plan(dense, plan), statistics, plan, dense)
            found = divergence(network, held, expected)
            if np.isfinite(found):  # a network that gives no numbers says nothing of scale
                measured[width] = max(found, 0.0)
        made[group.name] = Curve(group.name, scores, scaled(local, measured), measured)
        if progress is not None:
            progress(group.name)
        log.debug("%s: %s", group.name, {w: round(e, 4) for w, e in measured.items()})
    for name in coupling.blocks:
        if groups is None or name in groups:
            found = divergence(apply_plan(dense, coupling.plan({}, removed_blocks=[name])), held, expected)
            error = max(found, 0.0) if np.isfinite(found) else np.inf
            made[name] = Curve(name, np.array([error]), np.array([error, 0.0]), {0: error})
    return made


def scaled(local: np.ndarray, measured: Mapping[int, float]) -> np.ndarray:
    """`local` errors (by width, 0 at full width) brought to the measured values, never rising with the width.

    Between measured widths the factor from local to measured error is interpolated on a logarithmic scale, and beyond
    them it stays what it is at the nearest.

    >>> scaled(np.array([8.0, 4.0, 2.0, 1.0, 0.0]), {2: 1.0}).tolist()
    [4.0, 2.0, 1.0, 0.5, 0.0]
    """
    widths = np.arange(len(local))
    known = sorted(w for w, e in measured.items() if e > 0 and local[w] > 0)
    if not known:
        return local.copy()
    factors = np.log([measured[w] / local[w] for w in known])
    errors = np.where(local > 0, local, 0.0) * np.exp(np.interp(widths, known, factors))
    return np.maximum.accumulate(errors[::-1])[::-1].copy()
