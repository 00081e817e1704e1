"""The closed form: what removed summands contributed, given back by those that stay.

A weight W (rows, columns) reads u; of its columns S remain. The least squares estimate of W u from u_S is
``W' = (W G[:, S] + lam W[:, S]) (G[S, S] + lam I)^-1`` with G = E[u u^T] and the constant 1 as one more column, whose
weight is what the bias takes up. lam draws W' towards the slice W[:, S], which is W' where nothing was seen.

Source: the optimal brain surgeon's update of all weights (Hassibi and Stork, 1993) for whole units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passes.statistics.moments import Moments
from passes.statistics.sites import Kept

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean of the diagonal of G
_LARGE = 1024  # columns above which one ridge is tried: each costs the cube


@dataclass(frozen=True)
class LayerRepair:
    """What compensation did to one weight.

    before, after: the share (at most 1) of the variance of its dense output on held-out data that the slice and the
    repaired weight explain. repaired: whether the weight was changed. ridge: the one with the least held-out error.
    why: of a weight that keeps its slice, the reason.
    """

    name: str
    parameter: str
    before: float
    after: float
    repaired: bool
    ridge: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Solved:
    """New weights (groups, rows, columns) and biases (groups, rows; zeros where no bias can take them)."""

    weight: Tensor
    shift: Tensor
    before: float
    after: float
    ridge: float | None


def solve(weight: Tensor, moments: Moments, kept: Kept, biased: bool, ridges: Sequence[float] = RIDGES) -> Solved:
    """The best weights for the kept columns of `weight` (groups, rows, columns), judged on held-out rows.

    biased: whether a constant can be added to the output. `ridge` of the result is None where no solution explains more
    of the held-out rows than the slice; the weights are then the slice.
    """
    device = moments.tiles[0].device if moments.tiles else torch.device("cpu")
    weight = weight.detach().to(device, torch.float64)
    parts = []
    for group in np.flatnonzero(kept.groups):
        rows = torch.from_numpy(np.flatnonzero(kept.rows[group])).to(device)
        columns = torch.from_numpy(np.flatnonzero(kept.columns[group])).to(device)
        parts.append(_Group(weight[group].index_select(0, rows), columns, moments, int(group), biased))
    tried = ridges if moments.columns <= _LARGE else (1e-3,)
    before, total = sum(p.slice_error() for p in parts), sum(p.variance for p in parts)
    best: tuple[float, float, list[tuple[Tensor, Tensor]]] | None = None
    for ridge in tried if moments.count and parts else ():
        made = [p.solution(ridge) for p in parts]
        error = sum(p.error(*m) for p, m in zip(parts, made, strict=True))
        if np.isfinite(error) and error < before and (best is None or error < best[0]):
            best = error, ridge, made
    sliced = [(p.weight.index_select(1, p.columns), p.weight.new_zeros(len(p.weight))) for p in parts]
    chosen = sliced if best is None else best[2]
    return Solved(
        torch.stack([w for w, _ in chosen]), torch.stack([s for _, s in chosen]),
        _explained(before, total), _explained(before if best is None else best[0], total),
        None if best is None else best[1],
    )  # fmt: skip


def _explained(error: float, total: float) -> float:
    return 1.0 if error <= 0 else 1.0 - error / total if total > 0 else -np.inf


class _Group:
    """One group of a site: its weight (rows, columns), moments and held-out readings."""

    def __init__(self, weight: Tensor, columns: Tensor, moments: Moments, group: int, biased: bool) -> None:
        self.weight, self.columns, self.biased = weight, columns, biased
        self.moment = moments.matrix(group)
        held = moments.held
        self.held = None if held is None else held[group].to(weight.device, torch.float64)
        self.dense = None if self.held is None else self.held @ weight.T
        # without held-out rows errors are those of the fit
        if self.dense is not None:
            self.variance = float((self.dense - self.dense.mean(0)).square().mean(0).sum())
        else:
            mean = self.moment[:-1, -1]
            covariance = self.moment[:-1, :-1] - mean[:, None] * mean[None]
            self.variance = float(((weight @ covariance) * weight).sum())

    def slice_error(self) -> float:
        return self.error(self.weight.index_select(1, self.columns), self.weight.new_zeros(len(self.weight)))

    def error(self, weight: Tensor, shift: Tensor) -> float:
        """The mean squared difference from the dense output, summed over rows.

        A shift that an estimated norm takes up would be free for the slice as well; so it is for a norm's site.
        """
        if self.held is not None and self.dense is not None:
            found = self.held.index_select(1, self.columns) @ weight.T + shift
            return float((found - self.dense).square().mean(0).sum())
        full = self.weight.new_zeros(len(weight), len(self.moment))
        full[:, :-1] = -self.weight
        full[:, self.columns] += weight
        full[:, -1] = shift
        return float(((full @ self.moment) * full).sum())

    def solution(self, ridge: float) -> tuple[Tensor, Tensor]:
        constant = [len(self.moment) - 1] if self.biased else []
        index = torch.cat([self.columns, torch.tensor(constant, dtype=torch.long, device=self.columns.device)])
        small = self.moment.index_select(0, index).index_select(1, index)
        cross = self.weight @ self.moment[:-1].index_select(1, index)
        lam = ridge * self.moment.diagonal()[:-1].mean()
        draw = torch.zeros(len(index), dtype=torch.float64, device=small.device)
        draw[: len(self.columns)] = lam + 1e-12
        target = cross.clone()
        target[:, : len(self.columns)] += lam * self.weight.index_select(1, self.columns)
        factor, failed = torch.linalg.cholesky_ex(small + torch.diag(draw))
        if int(failed):
            return self.weight.index_select(1, self.columns), self.weight.new_full((len(self.weight),), torch.inf)
        found = torch.cholesky_solve(target.T, factor).T
        weight = found[:, : len(self.columns)]
        shift = found[:, -1] if self.biased else found.new_zeros(len(found))
        return weight, shift
