"""Importance: which units of a group a network can best do without.

The importance of a unit is summed over all producers of its group (the convolutions and linear layers whose outputs
are added, or otherwise tied, so that they keep the same units), on any dtype and device, in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError, WeightError
from fxprune.io.checkpoint import Values
from passes import Group
from passes.analysis.groups import Slice

log = logging.getLogger(__name__)


def importance(network: nn.Module, group: Group, metric: str = "l2_norm") -> np.ndarray:
    """The importance of each unit of a group: a float64 array of `group.size`, the higher the more needed.

    Metrics: `l1_norm`, `l2_norm` (of the unit's weights; the paper's choice), `fpgm` (the sum of the distances to all
    other units: what is near the others can be replaced by them; He et al., CVPR 2019), `bn_scale` (the scale of the
    normalisation that follows; Liu et al., ICCV 2017).

    A depthwise convolution carries its channels through and is no producer of them. A group that no weight produces
    (the channels of a position embedding) is ranked by its other tensors; one that no normalisation scales is ranked
    by `l2_norm` under `bn_scale`. Where weights are on the meta device and no checkpoint holds them, all units are
    equally important.
    """
    if metric not in METRICS:
        raise ConfigError(f"metrics: got {metric!r}, expected one of {', '.join(METRICS)}.")
    tensors = Values(network)
    if any(item.tensor not in tensors for item in group.slices):
        return np.ones(group.size)
    if metric == "bn_scale":
        scales = [item for item in group.slices if item.role == "scale"]
        if scales:
            return _summed(tensors, group, scales, _l1)
        log.debug("%s: no normalisation scales this group; bn_scale ranks it by l2_norm", group.name)
        metric = "l2_norm"
    return _summed(tensors, group, _producers(group), METRICS[metric])


def keep_units(scores: np.ndarray, width: int) -> tuple[int, ...]:
    """The `width` most important units, in order; of equals the lowest index is kept.

    >>> keep_units(np.array([3.0, 1.0, 2.0, 1.0]), 3)
    (0, 1, 2)
    """
    order = np.argsort(-scores, kind="stable")
    return tuple(sorted(int(unit) for unit in order[:width]))


def producer_count(group: Group) -> int:
    """How many results lose the units of a group: one inside a residual block, one a block of a residual stream.

    They are those of the weights that produce the units, but no more than weights sum over them: the gate and the
    values of a gated MLP, or queries, keys and values of heads, are lost once.
    """
    made, summed = ({i.tensor for i in group.slices if i.role == role} for role in ("output", "input"))
    return max(1, min(len(made), len(summed)))


def importance_lost(scores: np.ndarray, producers: int = 1) -> np.ndarray:
    """What a group loses by keeping its most important units: an array whose entry w is the loss at width w.

    The loss is -log(share of the group's importance that is kept) for each weight that produces the group: 0 at full
    width, infinite at none, and it adds up over layers, groups and rounds. Relative to the group, because the
    importances of different layers have no common scale.
    """
    kept = np.concatenate([[0.0], np.cumsum(np.sort(scores)[::-1])])
    if kept[-1] <= 0:  # nothing to lose: all units are zero
        return np.where(np.arange(len(kept)) > 0, 0.0, np.inf)
    with np.errstate(divide="ignore"):
        lost: np.ndarray = producers * np.maximum(0.0, -np.log(np.minimum(kept / kept[-1], 1.0)))
    return lost


def _producers(group: Group) -> list[Slice]:
    producers = [item for item in group.slices if item.role == "output"]
    return producers or [item for item in group.slices if item.role != "input"] or list(group.slices)


def _summed(
    tensors: Mapping[str, Tensor], group: Group, slices: list[Slice], measure: Callable[[Tensor], Tensor]
) -> np.ndarray:
    total = np.zeros(group.size)
    for item in slices:
        weight = tensors[item.tensor].detach()
        if not weight.is_floating_point() and not weight.is_complex():
            continue
        index = torch.from_numpy(np.ascontiguousarray(item.index)).to(weight.device)
        rows = weight.movedim(item.dim, 0)[index.reshape(-1)]  # (size * k, ...)
        scores = measure(rows.reshape(group.size, -1)).to("cpu", torch.float64).numpy()
        if not np.isfinite(scores).all():
            unit = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise WeightError(
                f"{item.tensor}: unit {unit} of group {group.name} holds NaN or infinity, so the importance of its "
                "units is not defined; train the network to finite weights before pruning it."
            )
        total += scores
    return total


def _l1(units: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(_wide(units), ord=1, dim=1)
    return norms


def _l2(units: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(_wide(units), ord=2, dim=1)
    return norms


def _fpgm(units: Tensor) -> Tensor:
    """Row sums of the distance matrix, by blocks: 4096 units of a large linear layer stay within 100 MB."""
    units = _wide(units)
    if units.is_complex():
        units = torch.view_as_real(units).flatten(1)
    return torch.cat([torch.cdist(block, units).sum(1) for block in units.split(512)])


def _wide(units: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    if units.device.type == "mps":
        units = units.cpu()
    return units.to(torch.complex128 if units.is_complex() else torch.float64)


METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1_norm": _l1,
    "l2_norm": _l2,
    "fpgm": _fpgm,
    "bn_scale": _l1,
}
