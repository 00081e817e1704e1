"""A call of the masked network, for references: what operators that take statistics give on surviving positions alone.

The proof of a pruned network needs them: where removing units changes the surviving values, the masked network is the
dense one with these in place of the operators. Each stands at its operator's rule, written apart from the rewriting.
An operator that mixes and has none keeps its axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from passes.axes.expressions import Axis, Variable, leaves
from passes.axes.index_sets import Mask, survivors
from passes.ops.call import Record, signature
from passes.process.torch_private import OpOverload


def narrowed(axis: Axis, masks: Mapping[Variable, Mask]) -> bool:
    """Whether units of `axis` are removed."""
    return any(v in masks for v in leaves(axis))


def column(mask: np.ndarray, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """`mask` along dimension `dim`, to be broadcast to `tensor`, in its dtype."""
    shape = [1] * tensor.dim()
    shape[dim] = len(mask)
    return torch.from_numpy(mask).to(tensor.device, tensor.dtype).reshape(shape)


class Masked:
    """A call some of whose operands' positions are removed, by the names of the operator's schema."""

    def __init__(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], record: Record,
        masks: Mapping[Variable, Mask],
    ) -> None:  # fmt: skip
        names, defaults = signature(func)
        self.func, self.record, self.masks = func, record, masks
        self.arguments: dict[str, object] = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        self._args, self._kwargs = args, kwargs

    def __getitem__(self, name: str) -> Any:
        """The argument called `name`."""
        return self.arguments[name]

    def present(self, dims: Iterable[int] | None = None) -> torch.Tensor:
        """One where a position of the first operand survives along `dims` (by default all), else zero; in its shape."""
        tensor = self._args[0]
        result = torch.ones((1,) * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
        for dim in range(tensor.dim()) if dims is None else dims:
            axis = self.record.inputs[0].axes[dim]
            if narrowed(axis, self.masks):
                result = result * column(survivors(axis, self.masks), tensor, dim)
        return result.expand(tensor.shape)

    def _mixed_dims(self) -> dict[int, torch.Tensor]:
        """The dimensions of the first operand that the operator mixes, with the positions there that survive."""
        mixed = {v for axis in self.record.mixed for v in leaves(axis)}
        return {
            dim: torch.from_numpy(np.flatnonzero(survivors(axis, self.masks))).to(self._args[0].device)
            for dim, axis in enumerate(self.record.inputs[0].axes)
            if narrowed(axis, self.masks) and set(leaves(axis)) & mixed
        }

    def chosen(self) -> Any:
        """What the operator chooses among surviving positions along one dimension; positions by their own numbers."""
        ((_, survive),) = self._mixed_dims().items()
        found = self.without_removed()
        if isinstance(found, torch.Tensor):
            return survive[found]
        return (found[0], survive[found[1]])

    def of_surviving(self) -> object:
        """What the operator gives where removed positions are zero in its first operand."""
        cleared = torch.where(self.present(self._mixed_dims()).bool(), self._args[0], 0)
        return self.func(cleared, *self._args[1:], **self._kwargs)

    def among_surviving(self) -> torch.Tensor:
        """What the operator gives on surviving positions alone, each at its own place; zero elsewhere."""
        found: torch.Tensor = self.without_removed()
        for dim, survive in self._mixed_dims().items():
            shape = [*found.shape[:dim], self._args[0].shape[dim], *found.shape[dim + 1 :]]
            found = found.new_zeros(shape).index_copy_(dim, survive, found)
        return found

    def without_removed(self) -> Any:
        """What the operator gives where removed positions are left out of its first operand, as far as it mixes them.

        The shape of the result must not depend on how many there are: a reduction.
        """
        tensor = self._args[0]
        for dim, survive in self._mixed_dims().items():
            tensor = tensor.index_select(dim, survive)
        return self.func(tensor, *self._args[1:], **self._kwargs)
