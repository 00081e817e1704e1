"""Operands of a call that sums over pruned axes, with zeros where units were removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from passes.axes.expressions import Variable, leaves
from passes.axes.index_sets import Mask, survivors
from passes.ops import Record
from passes.ops.references import column, narrowed
from passes.process.torch_private import pytree

_PIECE = 1 << 21  # elements that are looked at together


def cleared_arguments(
    args: Any, kwargs: Any, record: Record, masks: Mapping[Variable, Mask], summed: Collection[Variable]
) -> tuple[Any, Any] | None:
    """The arguments of a call, zero at the removed positions of every axis that has a part in `summed`.

    None where they are already: weights of removed units are, and what follows from them is as a rule. Then nothing is
    copied.
    """
    operands, changed = iter(record.inputs), False

    def clear(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal changed
        for dim, axis in enumerate(next(operands).axes):
            if not narrowed(axis, masks) or not any(v in summed for v in leaves(axis)):
                continue
            remain = survivors(axis, masks)
            if _is_zero(tensor, dim, torch.from_numpy((~remain).nonzero()[0]).to(tensor.device)):
                continue
            changed = True
            zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
            tensor = torch.where(column(remain, tensor, dim).bool(), tensor, zero)
        return tensor

    made = pytree.tree_map_only(torch.Tensor, clear, (args, kwargs))
    return made if changed else None


def _is_zero(tensor: torch.Tensor, dim: int, positions: torch.Tensor) -> bool:
    """Whether a tensor is zero at these positions of a dimension; NaN is not."""
    at_one = max(1, tensor.numel() // max(1, tensor.shape[dim]))
    pieces = positions.split(max(1, _PIECE // at_one))
    return not any(bool(tensor.index_select(dim, piece).count_nonzero()) for piece in pieces)
