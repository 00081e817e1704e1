"""The closed form: what removed summands contributed, fitted by those that stay.

A weight W (rows, columns) reads u; of its columns S remain. The least squares estimate of W u from u_S is
``W' = (W G[:, S] + lam W[:, S]) (G[S, S] + lam I)^-1`` with G = E[u u^T] and the constant 1 as one more column, whose
weight is what the bias takes up. lam draws W' towards the slice W[:, S], which is W' where nothing was seen.

Source: the optimal brain surgeon's update of all weights (Hassibi and Stork, 1993) for whole units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from passes.statistics.moments import Moments
from passes.statistics.sites import Kept

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean of the diagonal of G
_FIRST = 1e-3
_MOST = 1 << 24  # elements of a weight that are solved for at once: some arrays in double precision are as large
_LARGE = 1024  # columns above which one ridge is tried: each costs the cube


@dataclass(frozen=True)
class LayerRepair:
    """What compensation did to one weight.

    before, after: the share (at most 1) of the variance of its dense output on held-out data that the slice and the
    whole repair explain. repaired: whether the weight was changed. ridge: the one with the least held-out error. why:
    of a weight that keeps its slice, the reason. share: of the change that was applied, where all repairs together
    would lead away from the dense network.
    """

    name: str
    parameter: str
    before: float
    after: float
    repaired: bool
    ridge: float | None = None
    why: str = ""
    share: float = 1.0

    def at(self, share: float) -> LayerRepair:
        """This repair where only a share of every change was applied; none leaves the slice."""
        if not self.repaired or share == 1:
            return self
        if share:
            return replace(self, share=share)
        why = "all repairs together bring the outputs on held-out inputs no nearer to the dense ones"
        return replace(self, after=self.before, repaired=False, ridge=None, why=why, share=0.0)


@dataclass(frozen=True)
class Solved:
    """New weights (groups, rows, columns) and biases (groups, rows; zeros where no bias can take them).

    variance: of the dense output, of which `before` and `after` are shares.
    """

    weight: Tensor
    shift: Tensor
    before: float
    after: float
    ridge: float | None
    variance: float = 0.0


def solve(weight: Tensor, moments: Moments, kept: Kept, biased: bool, ridges: Sequence[float] = RIDGES) -> Solved:
    """The best weights for the kept columns of `weight` (groups, rows, columns), judged on held-out rows.

    biased: whether a constant can be added to the output. `ridge` of the result is None where no solution explains more
    of the held-out rows than the slice; the weights are then the slice. Very many rows (of a vocabulary) are solved
    some at a time, each lot with its own ridge, and come in the type of `weight`.
    """
    lots, weight = _lots(weight, kept), weight.detach()
    if len(lots) == 1:
        return _solved(weight, moments, lots[0], biased, ridges)
    found = []
    for lot in lots:
        part = _solved(weight, moments, lot, biased, ridges)
        found.append(replace(part, weight=part.weight.to(weight.dtype)))
    total = sum(part.variance for part in found)
    before, after = (
        sum(share * part.variance for part, share in zip(found, shares, strict=True)) / total if total > 0 else 1.0
        for shares in ([part.before for part in found], [part.after for part in found])
    )
    return Solved(
        torch.cat([part.weight for part in found], 1), torch.cat([part.shift for part in found], 1),
        before, after, max((part.ridge for part in found if part.ridge is not None), default=None), total,
    )  # fmt: skip


def _lots(weight: Tensor, kept: Kept) -> list[Kept]:
    """`kept` in lots of rows of one group."""
    most = max(1, _MOST // weight.shape[2])
    if len(kept.groups) > 1 or weight.shape[1] <= most:
        return [kept]
    starts = range(0, weight.shape[1], most)
    places = np.arange(weight.shape[1])
    lots = [kept.rows & ((places >= start) & (places < start + most)) for start in starts]
    return [Kept(kept.groups, rows, kept.columns) for rows in lots if rows.any()]


def _solved(weight: Tensor, moments: Moments, kept: Kept, biased: bool, ridges: Sequence[float]) -> Solved:
    parts, device = [], moments.device
    for group in np.flatnonzero(kept.groups):
        rows = torch.from_numpy(np.flatnonzero(kept.rows[group])).to(weight.device)
        columns = torch.from_numpy(np.flatnonzero(kept.columns[group])).to(device)
        own = weight[group].index_select(0, rows).to(device, torch.float64)
        parts.append(_Group(own, columns, moments, int(group), biased))
    before, total = sum(p.slice_error() for p in parts), sum(p.variance for p in parts)
    best = _best(parts, ridges if moments.columns <= _LARGE else (_FIRST,), before) if moments.count and parts else None
    sliced = [(p.sliced, p.weight.new_zeros(len(p.weight))) for p in parts]
    chosen = sliced if best is None else best[2]
    return Solved(
        torch.stack([w for w, _ in chosen]), torch.stack([s for _, s in chosen]),
        _explained(before, total), _explained(before if best is None else best[0], total),
        None if best is None else best[1], total,
    )  # fmt: skip


_Found = tuple[float, float, list[tuple[Tensor, Tensor]]]


def _best(parts: Sequence[_Group], ridges: Sequence[float], limit: float) -> _Found | None:
    """The least error, its ridge and its solutions, where it is below `limit`: from the ridge nearest to the usual one
    to larger or to smaller ones, as long as the error falls."""
    ordered = sorted(ridges)
    start = min(range(len(ordered)), key=lambda i: abs(np.log(ordered[i] / _FIRST)))
    best: _Found | None = None
    for way in (range(start, len(ordered)), range(start - 1, -1, -1)):
        for number in way:
            made = [p.solution(ordered[number]) for p in parts]
            error = sum(p.error(*m) for p, m in zip(parts, made, strict=True))
            if not np.isfinite(error) or error >= (limit if best is None else best[0]):
                if number != start:
                    break
                continue
            best = error, ordered[number], made
        if best is not None and best[1] > ordered[start]:
            break
    return best


def _explained(error: float, total: float) -> float:
    return 1.0 if error <= 0 else 1.0 - error / total if total > 0 else -np.inf


class _Group:
    """One group of a site: its weight (rows, columns), moments and held-out readings."""

    def __init__(self, weight: Tensor, columns: Tensor, moments: Moments, group: int, biased: bool) -> None:
        self.weight, self.columns, self.moments, self.number = weight, columns, moments, group
        self.sliced = weight.index_select(1, columns)
        self.constant = [moments.columns] if biased else []
        held = moments.held
        self.held = None if held is None else held[group].to(weight.device, torch.float64)
        self.dense = None if self.held is None else self.held @ weight.T
        # without held-out rows errors are those of the fit
        if self.dense is not None and self.held is not None:
            self.kept = self.held.index_select(1, columns)
            self.variance = float((self.dense - self.dense.mean(0)).square().mean(0).sum())
        else:
            self.moment = moments.matrix(group)
            mean = weight @ self.moment[:-1, -1]
            self.variance = float(((weight @ self.moment[:-1, :-1]) * weight).sum() - mean.square().sum())

    @cached_property
    def normal(self) -> tuple[Tensor, Tensor, float]:
        """The moments of what is kept (and the constant), what the removed columns contribute to them, and the mean of
        the diagonal."""
        index = torch.cat([self.columns, self.columns.new_tensor(self.constant)])
        gone = torch.ones(self.weight.shape[1], dtype=torch.bool, device=index.device)
        gone[self.columns] = False
        removed = torch.nonzero(gone)[:, 0]
        small = self.moments.block(self.number, index, index)
        lost = self.weight.index_select(1, removed) @ self.moments.block(self.number, removed, index)
        return small, lost, float(self.moments.diagonal(self.number)[:-1].mean())

    @cached_property
    def few(self) -> Tensor | None:
        """The rows that were seen, where there are fewer of them than columns."""
        rows = self.moments.rows(self.number)
        return rows if rows is not None and len(rows) < len(self.columns) else None

    def _of_few(self, rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """`solution` from the rows U themselves: ``W[:, R] U[:, R]^T (U[:, S] U[:, S]^T + lam I)^-1 U[:, S]``.

        The constant, which no ridge draws to zero, is taken out of all rows before, and follows from what is left.
        """
        ones = rows[:, -1:]
        kept = rows.index_select(1, self.columns)
        lost = self.weight @ rows[:, :-1].T - self.sliced @ kept.T
        apart = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        if self.constant:
            apart -= ones @ ones.T / ones.square().sum()
        centred = apart @ kept
        size = float(rows[:, :-1].square().sum(0).mean())
        inner = centred @ centred.T
        inner.diagonal().add_(ridge * size + 1e-12)
        gain = torch.linalg.solve(inner, apart @ lost.T).T @ centred
        shift = gain.new_zeros(len(gain))
        if self.constant:
            shift = ((lost - gain @ kept.T) @ ones / ones.square().sum())[:, 0]
        return self.sliced + gain, shift

    def slice_error(self) -> float:
        return self.error(self.sliced, self.weight.new_zeros(len(self.weight)))

    def error(self, weight: Tensor, shift: Tensor) -> float:
        """The mean squared difference from the dense output, summed over rows.

        A shift that an estimated norm takes up would be free for the slice as well; so it is for a norm's site.
        """
        if self.dense is not None:
            return float((self.kept @ weight.T + shift - self.dense).square().mean(0).sum())
        full = self.weight.new_zeros(len(weight), len(self.moment))
        full[:, :-1] = -self.weight
        full[:, self.columns] += weight
        full[:, -1] = shift
        return float(((full @ self.moment) * full).sum())

    def solution(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W' and the constant: the slice, and what W' adds to it, which is ``W[:, R] G[R, S] (G[S, S] + lam I)^-1``."""
        if self.few is not None:
            return self._of_few(self.few, ridge)
        small, lost, size = self.normal
        diagonal = small.diagonal()[: len(self.columns)]
        before = diagonal.clone()
        diagonal += ridge * size + 1e-12  # in place, for the factor alone: the matrix may be large
        factor, failed = torch.linalg.cholesky_ex(small)
        diagonal.copy_(before)
        if int(failed):
            return self.sliced, self.weight.new_full((len(self.weight),), torch.inf)
        gain = torch.cholesky_solve(lost.T, factor).T
        shift = gain[:, -1] if self.constant else gain.new_zeros(len(gain))
        return self.sliced + gain[:, : len(self.columns)], shift
