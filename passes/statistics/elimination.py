"""Which units of a group go first, and what each width costs: structured elimination over all that read the group.

With ``H = G + lam I`` of each weight that reads the group, the unit u of least ``sum tr(W_u [(H^-1)_uu]^-1 W_u^T)`` is
removed, W and H^-1 are updated for the weights that remain, and so on: one order for every width, with the error that
the repaired outputs then have, relative to their variance.

Sources: Hassibi and Stork (1993); ZipLM, Kurtic et al. (2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passes.analysis.coupling import Coupling
from passes.analysis.groups import Group
from passes.statistics.moments import Moments
from passes.statistics.record import Statistics
from passes.statistics.sites import Site

RIDGE = 1e-3
_WIDE = 2048  # columns above which a unit's are brought into the few directions that its weights read
_WIDEST = 8192  # columns above which units are taken to be independent
_STEPS = 96  # groups with more units lose several a step


@dataclass(frozen=True)
class Elimination:
    """Units in the order in which they go; errors[w] is the error at width w (0 at full width), relative."""

    order: tuple[int, ...]
    errors: np.ndarray

    def keep(self, width: int) -> tuple[int, ...]:
        """The units that are left at `width`, ascending."""
        return tuple(sorted(self.order[len(self.order) - width :]))

    @property
    def ranks(self) -> np.ndarray:
        """A score for each unit, the higher the later it is removed."""
        scores = np.empty(len(self.order))
        scores[list(self.order)] = np.arange(len(self.order))
        return scores


def eliminate(
    group: Group, coupling: Coupling, statistics: Statistics, weights: Mapping[str, Tensor], ridge: float = RIDGE
) -> Elimination | None:
    """The elimination of `group`, given the dense network's tensors by name; None where no observed weight reads it."""
    readers = [
        made
        for site in statistics.sites.values()
        for made in _readers(site, group, coupling, statistics, weights, ridge)
    ]
    if not readers:
        return None
    left = list(range(group.size))
    order: list[int] = []
    errors = np.zeros(group.size + 1)
    total = 0.0
    while left:
        costs = sum(reader.costs(left) for reader in readers)
        take = max(1, len(left) // _STEPS) if group.size > _STEPS else 1
        for unit in [left[i] for i in np.argsort(costs, kind="stable")[:take]]:
            total += sum(reader.remove(unit) for reader in readers)
            left.remove(unit)
            order.append(unit)
            errors[len(left)] = total
    return Elimination(tuple(order), np.maximum.accumulate(errors[::-1])[::-1].copy())


def unit_columns(site: Site, group: Group, coupling: Coupling) -> Tensor | None:
    """For each conv group of a site and each of its columns the unit of `group` that it reads, -1 for none.

    (groups, columns), int32; None where the site does not read the group.
    """
    name = coupling.aliases.get(site.parameter, site.parameter)
    slices = [s for s in group.slices if s.tensor == name and s.role == "input"]
    if not slices:
        return None
    units = torch.full(site.layout.shape, -1, dtype=torch.int32)
    for item in slices:
        by_position = torch.full((site.layout.shape[item.dim],), -1, dtype=torch.int32)
        for unit, positions in enumerate(item.index):
            by_position[torch.from_numpy(np.ascontiguousarray(positions))] = unit
        view = [1] * units.dim()
        view[item.dim] = -1
        units = torch.maximum(units, by_position.reshape(view).expand_as(units))
    matrix = site.matrix(units)
    if not bool((matrix == matrix[:, :1]).all()):
        return None  # the units stand along its rows
    return matrix[:, 0]


def _readers(
    site: Site, group: Group, coupling: Coupling, statistics: Statistics, weights: Mapping[str, Tensor], ridge: float
) -> Sequence[_Reader | _Independent]:
    """For each conv group of a site in which the group's units are columns, what is left of it."""
    columns = unit_columns(site, group, coupling)
    if columns is None:
        return []
    moments = statistics.of(site)
    if moments.is_empty:
        return []
    weight = site.matrix(weights[site.parameter].detach()).double()
    biased = bool(site.bias or site.norm)
    if site.columns > _WIDEST:
        return [_Independent(weight, moments, columns, group.size, biased)]
    made = []
    variances = []
    for number in range(site.groups):
        moment = moments.matrix(number).cpu()
        mean = moment[:-1, -1]
        covariance = moment[:-1, :-1] - mean[:, None] * mean[None]
        w, units = weight[number].cpu(), columns[number]
        variances.append(float(((w @ covariance) * w).sum()))
        if site.columns > _WIDE:
            w, moment, units = _narrowed(w, moment, units, group.size)
        made.append((w, moment if biased else moment[:-1, :-1], units))
    scale = 1.0 / max(sum(variances), 1e-30)
    return [_Reader(w, moment, units, group.size, ridge, scale) for w, moment, units in made]


def _narrowed(weight: Tensor, moment: Tensor, units: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, moment and units with the columns of each unit in an orthonormal basis of what the weight reads of it.

    That there are fewer of them only keeps repair from using directions that the weight did not read.
    """
    basis, kept = [], []
    for unit in range(-1, size):
        index = torch.nonzero(units == unit)[:, 0]
        few = len(weight) if unit >= 0 and len(index) > len(weight) else 0
        own = torch.linalg.qr(weight[:, index].T)[0] if few else torch.eye(len(index), dtype=weight.dtype)
        basis.append((index, own))
        kept.append(units.new_full((own.shape[1],), unit))
    order = torch.cat([index for index, _ in basis])
    last = torch.tensor([len(moment) - 1])
    half = torch.cat([moment[:, index] @ own for index, own in basis] + [moment[:, last]], 1)
    small = torch.cat([own.T @ half[index] for index, own in basis] + [half[last]], 0)
    assert len(order) == weight.shape[1], "every column is of one unit or of none"
    return torch.cat([weight[:, index] @ own for index, own in basis], 1), small, torch.cat(kept)


class _Independent:
    """A reader too wide for the inverse of its moment: a unit costs what it contributes, whatever else is removed."""

    def __init__(self, weight: Tensor, moments: Moments, columns: Tensor, size: int, biased: bool) -> None:
        found = torch.zeros(size, dtype=torch.float64)
        for number in range(len(weight)):
            for unit in range(size):
                index = torch.nonzero(columns[number] == unit)[:, 0].to(moments.device)
                part = weight[number].to(index.device)[:, index]
                moment = moments.block(number, index, index)
                if biased:  # a constant is made good
                    mean = moments.block(number, index, index.new_tensor([moments.columns]))
                    moment = moment - mean @ mean.T
                found[unit] += float(((part @ moment) * part).sum())
        self.worth = (found / found.sum().clamp_min(1e-30)).numpy()

    def costs(self, left: list[int]) -> np.ndarray:
        """What the removal of each unit would add to the error."""
        return self.worth[left]

    def remove(self, unit: int) -> float:
        """What the removal of one unit adds to the error."""
        return float(self.worth[unit])


class _Reader:
    """One matrix that reads the group: its weights and inverse moment, updated as units go."""

    def __init__(self, weight: Tensor, moment: Tensor, units: Tensor, size: int, ridge: float, scale: float) -> None:
        count = weight.shape[1]
        lam = ridge * moment.diagonal()[:count].mean() + 1e-12
        damped = moment.clone()
        damped.diagonal()[:count] += lam
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.weight = torch.zeros(len(moment), len(weight), dtype=torch.float64)
        self.weight[:count] = weight.T
        self.columns = [torch.nonzero(units == unit)[:, 0] for unit in range(size)]
        self.scale = scale

    def costs(self, left: list[int]) -> np.ndarray:
        """What the removal of each unit would add to the error now."""
        found = np.zeros(len(left))
        by_length: dict[int, list[int]] = {}
        for place, unit in enumerate(left):
            by_length.setdefault(len(self.columns[unit]), []).append(place)
        for length, places in by_length.items():
            if not length:
                continue
            index = torch.stack([self.columns[left[p]] for p in places])
            block = self.inverse[index[:, :, None], index[:, None, :]]
            weight = self.weight[index]
            found[places] = (torch.linalg.solve(block, weight) * weight).sum((1, 2)).numpy()
        return found * self.scale

    def remove(self, unit: int) -> float:
        """Remove one unit: the others' weights make good for it. Returns what it adds to the error."""
        index = self.columns[unit]
        if not len(index):
            return 0.0
        weight = self.weight[index]
        rows = self.inverse[index]
        solved = torch.linalg.solve(rows[:, index], torch.cat([rows, weight], 1))
        back, cost = solved[:, : len(self.inverse)], float((solved[:, len(self.inverse) :] * weight).sum())
        self.weight -= back.T @ weight
        self.inverse -= rows.T @ back
        self.weight[index] = 0
        self.inverse[index] = 0
        self.inverse[:, index] = 0
        self.inverse[index, index] = 1
        return cost * self.scale
