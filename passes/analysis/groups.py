"""What the analysis of a network finds: groups of units with their slices, what stays and why, and what that covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from passes.axes.expressions import Reason


@dataclass(frozen=True)
class Slice:
    """Where a group occurs in one dimension of one tensor.

    tensor: qualified name in the module's state_dict. index: integer array (size, k), row u holds the positions that
    unit u takes in dimension `dim`. blocks: where the group has outer blocks (conv groups, heads) the block of each of
    the k columns, an integer array (k,), else None.
    role: "output" (a weight produces it), "input" (a weight sums over it), "carried" (it enters and leaves a weighted
    operator: the channels of a depthwise convolution), "scale" (the weight of a normalisation) or "other" (biases,
    running statistics, elementwise parameters).
    """

    tensor: str
    dim: int
    index: np.ndarray
    role: str = "other"
    blocks: np.ndarray | None = None


@dataclass(frozen=True)
class Group:
    """Units that are removed together everywhere: `size` units, unit u being row u of every slice.

    mixed: some operator takes statistics over the units (layer normalisation, a mean over channels), or sums them
    where a zeroed unit is no longer zero (after a sigmoid). The pruned network then equals the dense one with that
    operator applied to the surviving units; of every other group it equals the dense one with zeroed slices.
    blocks: in how many outer blocks (heads, convolution groups) the units may be chosen apart (see `Coupling.formed`);
    1 where they may not. least: how many have to stay: as many experts as a router chooses for each token. multiple:
    how many stay has to be a multiple of it, for kernels that take no other sizes.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    mixed: bool = False
    blocks: int = 1
    least: int = 1
    multiple: int = 1

    def __repr__(self) -> str:
        return f"Group({self.name!r}, size={self.size}, slices={len(self.slices)}{', mixed' if self.mixed else ''})"


@dataclass(frozen=True)
class Frozen:
    """Positions ``start:stop`` of a parameter's dimension that stay, and why."""

    tensor: str
    dim: int
    start: int
    stop: int
    why: Reason

    @property
    def reason(self) -> str:
        """What forbids it, in words."""
        return self.why.text

    @property
    def node(self) -> str:
        """The graph node that forbids it."""
        return self.why.node

    @property
    def source(self) -> str:
        """The user's source line of that node, ``file.py:line``, where the graph knows it."""
        return self.why.source

    def __str__(self) -> str:
        return f"{self.tensor} dim {self.dim} [{self.start}:{self.stop}]: {self.why}"


@dataclass(frozen=True)
class Coverage:
    """Shares (0 to 1) of MACs and of parameters that shrink with at least one group, and what holds back the rest.

    missing: for each reason the number of parameter elements that it alone keeps.
    """

    macs: float
    params: float
    missing: Mapping[str, int]


def in_order(group: Group, order: np.ndarray) -> Group:
    """`group` with unit u made of what was unit ``order[b, u]`` in block b."""
    slices = []
    for item in group.slices:
        assert item.blocks is not None, "a group with blocks has them in every slice"
        columns = np.arange(item.index.shape[1])
        slices.append(replace(item, index=item.index[order[item.blocks].T, columns]))
    return replace(group, slices=tuple(slices))
