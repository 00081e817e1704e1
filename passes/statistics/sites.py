"""Uses of weights on data: for each contraction with a parameter, at which positions which of its elements are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passes.ops.operands import Form


@dataclass(frozen=True)
class Layout:
    """A strided view of a parameter: sizes, strides and offset in the parameter's storage, whose own strides are given.

    Chunks, transpositions and reshapes of a weight are such views, so this says which element stands where.
    """

    shape: tuple[int, ...]
    own: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """`tensor`, of the parameter's shape, seen as the operand sees the parameter."""
        spread = torch.empty_strided(self.shape, self.own, dtype=tensor.dtype, device=tensor.device)
        spread.copy_(tensor)
        return spread.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class Norm:
    """The batch normalisation that reads a site's output at once: names of its tensors, and its epsilon."""

    weight: str | None
    bias: str | None
    mean: str
    var: str
    eps: float


@dataclass(frozen=True)
class Site:
    """One use of a parameter by an operator that sums over some of its axes.

    name: the parameter, and a number where it is used in several layouts. moments: the name of the site whose moments
    are of the same operand (q, k and v read one). bias: the name of the parameter that is added, one element a row.
    node: the graph node, where a graph was run.
    """

    name: str
    parameter: str
    form: Form
    layout: Layout
    groups: int
    rows: int
    columns: int
    moments: str
    bias: str | None = None
    bias_layout: Layout | None = None
    norm: Norm | None = None
    node: str = ""

    def matrix(self, parameter: Tensor) -> Tensor:
        """A tensor of the parameter's shape as (groups, rows, columns)."""
        return self.form.matrix(self.layout.of(parameter))

    @property
    def is_plain(self) -> bool:
        """Whether the matrix is the parameter as it is, (rows, columns)."""
        if len(self.layout.shape) != 2 or self.groups != 1:
            return False
        found = self.matrix(torch.empty(self.layout.shape, device="meta"))[0]
        seen = tuple(found.shape), found.stride(), found.storage_offset()
        return seen == (self.layout.shape, self.layout.own, 0)

    def positions(self) -> Tensor:
        """Which element (flat, in logical order) of the parameter stands where, (groups, rows, columns), int64."""
        count = int(np.prod(self.layout.shape, dtype=np.int64))
        return self.matrix(torch.arange(count).reshape(self.layout.shape))


@dataclass(frozen=True)
class Kept:
    """What a plan leaves of a site: boolean masks over its groups, rows and columns.

    columns: (groups, columns); in each remaining group as many remain.
    """

    groups: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def narrows(self) -> bool:
        """Whether summands are removed, so that something can be made good."""
        return not bool(self.columns[self.groups].all())


def remaining_elements(shape: Sequence[int], remain: Sequence[np.ndarray]) -> Tensor:
    """Which elements of a tensor remain, a boolean tensor of its shape, given flags for each dimension."""
    mask = torch.ones(shape, dtype=torch.bool)
    for dim, positions in enumerate(remain):
        view = [1] * mask.dim()
        view[dim] = -1
        mask &= torch.from_numpy(np.asarray(positions, dtype=bool)).reshape(view)
    return mask


def kept_of(site: Site, survivors: Mapping[str, list[np.ndarray]]) -> Kept | None:
    """What remains of `site`, given which positions remain in each dimension of each parameter; None where no matrix
    remains of each group (units chosen apart by row)."""
    matrix = site.matrix(remaining_elements(site.layout.shape, survivors[site.parameter]))
    rows, columns = matrix.any(2), matrix.any(1)
    if not torch.equal(rows[:, :, None] & columns[:, None, :], matrix):
        return None
    groups = matrix.flatten(1).any(1)
    counts = columns[groups].sum(1)
    if len(counts) and int(counts.min()) != int(counts.max()):
        return None
    return Kept(groups.numpy(), rows.numpy(), columns.numpy())
