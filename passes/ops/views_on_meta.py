"""Views on the meta device: their shapes and strides by arithmetic, which takes a third of the time of a call of torch.

Each returns None for what it leaves to torch, which says what is wrong with a call.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch

from passes.ops.call import aten
from passes.ops.meta_shapes import Shape, made, plain, shaped
from passes.ops.table import states


def in_rows(shape: Shape) -> tuple[int, ...]:
    """The strides of a tensor of this shape that lies in memory row by row.

    >>> in_rows([2, 3, 4])
    (12, 4, 1)
    """
    return tuple(accumulate(reversed(shape[1:]), operator.mul, initial=1))[::-1]


def _place(dim: int, count: int) -> int | None:
    return dim % count if -count <= dim < count else None


def _seen_as(tensor: torch.Tensor, sizes: Shape) -> Shape | None:
    """The sizes, one of which may be left to torch, where they fit."""
    known = prod([size for size in sizes if size != -1])
    open_ones = sum(size == -1 for size in sizes)
    if not known or open_ones > 1 or tensor.numel() % known or (not open_ones and known != tensor.numel()):
        return None
    return [tensor.numel() // known if size == -1 else size for size in sizes]


def _view(tensor: torch.Tensor, sizes: Shape) -> torch.Tensor | None:
    if not tensor.is_contiguous():
        return None
    before = tensor.shape
    if 1 in before and tensor.stride() != in_rows(before):  # a dimension of one may have any stride, and keep it
        return None
    shape = _seen_as(tensor, sizes)
    return None if shape is None else made(tensor, shape)


def _permuted(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor | None:
    shape, stride = tensor.shape, tensor.stride()
    places = [_place(dim, len(shape)) for dim in dims]
    if None in places or len(set(places)) < len(places) or len(places) < len(shape):
        return None
    return made(tensor, [shape[dim] for dim in dims], [stride[dim] for dim in dims])


def _exchanged(tensor: torch.Tensor, first: int, second: int) -> torch.Tensor | None:
    shape, stride = list(tensor.shape), list(tensor.stride())
    if _place(first, len(shape)) is None or _place(second, len(shape)) is None:
        return None
    for found in (shape, stride):
        found[first], found[second] = found[second], found[first]
    return made(tensor, shape, stride)


def _transposed(tensor: torch.Tensor) -> torch.Tensor | None:
    return _exchanged(tensor, 0, 1) if tensor.dim() == 2 else None


def _expanded(tensor: torch.Tensor, sizes: Shape) -> torch.Tensor | None:
    more = len(sizes) - tensor.dim()
    if more < 0 or -1 in sizes[:more]:
        return None
    shape, strides = [], []
    for size, old, stride in zip(sizes[more:], tensor.shape, tensor.stride(), strict=True):
        if size not in (old, -1) and (old != 1 or size < 0):
            return None
        shape.append(old if size == -1 else size)
        strides.append(stride if size in (old, -1) else 0)
    for size in reversed(sizes[:more]):  # a new dimension of one is laid around those that the tensor has
        strides.insert(0, shape[0] * strides[0] if size == 1 and tensor.dim() else 0)
        shape.insert(0, size)
    return made(tensor, shape, strides)


def _unsqueezed(tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
    shape, stride = list(tensor.shape), list(tensor.stride())
    place = _place(dim, len(shape) + 1)
    if place is None:
        return None
    stride.insert(place, shape[place] * stride[place] if place < len(shape) else 1)
    shape.insert(place, 1)
    return made(tensor, shape, stride)


def _sliced(
    tensor: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> torch.Tensor | None:
    shape, stride = list(tensor.shape), list(tensor.stride())
    place = _place(dim, len(shape))
    if place is None or step < 1:
        return None
    shape[place] = len(range(shape[place])[slice(start, end, step)])
    stride[place] *= step
    return made(tensor, shape, stride)


def _selected(tensor: torch.Tensor, dim: int, index: int) -> torch.Tensor | None:
    shape, stride = list(tensor.shape), list(tensor.stride())
    place = _place(dim, len(shape))
    if place is None or _place(index, shape[place]) is None:
        return None
    del shape[place], stride[place]
    return made(tensor, shape, stride)


states(aten._unsafe_view, meta=shaped(_seen_as))
states(aten.view.default, meta=plain(_view))
states(aten.permute, meta=plain(_permuted))
states(aten.transpose.int, meta=plain(_exchanged))
states(aten.t, meta=plain(_transposed))
states(aten.expand, meta=plain(_expanded))
states(aten.unsqueeze, meta=plain(_unsqueezed))
states(aten.slice.Tensor, meta=plain(_sliced))
states(aten.select.int, meta=plain(_selected))
