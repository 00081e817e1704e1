"""Sizes beside those of the example at which a module is run: without values, so that large ones cost no more.

Whole numbers and flags keep theirs (masks, places, lengths), repeated, as long as they are not very many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from passes.nested_values import image_count, listed_images, with_another_image
from passes.stream.call_arguments import Arguments, replaced, tensors_of

_FAR = 4  # times as long, so that a threshold that a program has lies between, whatever it makes of the size
_LONG = 512  # a longer one is made half as long again
_MORE = 100  # samples
_MOST = 2**24  # elements of a table that a program may make for all pairs of positions of all samples
_VALUES = 2**22  # elements of an input that keeps its values


def other_sizes(arguments: Arguments) -> Iterator[Arguments]:
    """The arguments, on the meta device, with every size that is likely free another: far ones first, then near ones.

    Then with another batch alone. Of images in lists there is one more, at first.
    """
    if image_count(arguments):
        yield from _resized(with_another_image(arguments))
    yield from _resized(arguments)


def _resized(arguments: Arguments) -> Iterator[Arguments]:
    tensors = list({id(t): t for t in tensors_of(arguments)}.values())
    shaped = [t for t in tensors if t.dim()]
    if not shaped:
        return
    images = listed_images(arguments)
    batch = 0 if images else int(shaped[0].shape[0])
    free = {id(t): range(1, 3) if id(t) in images else _lengths(t) for t in shaped}
    lengths = {int(t.shape[dim]) for t in shaped for dim in free[id(t)]} - {1}
    near = {length: length + max(1, length // 2) for length in lengths}
    far = {length: _FAR * length if length <= _LONG else near[length] for length in lengths}
    more = max(1, min(_MORE, _MOST // max(far.values(), default=1) ** 2))
    for samples, sizes in ((more, far), (1, near), (more, {}), (1, {})) if lengths else ((more, {}), (1, {})):
        yield replaced(arguments, {id(t): _other(t, batch, samples, sizes, free.get(id(t), ())) for t in tensors})


def _lengths(tensor: torch.Tensor) -> Sequence[int]:
    """The dimensions that are likely a length or an image size: no batch and no channels."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return range(1, tensor.dim())
    return range(2, tensor.dim()) if tensor.dim() > 3 else range(1, tensor.dim() - 1)


def _other(
    tensor: torch.Tensor, batch: int, more: int, sizes: dict[int, int], free: Sequence[int]
) -> torch.Tensor:  # fmt: skip
    """`tensor` with `more` samples where it has `batch`, and others of its `free` dimensions' `sizes`."""
    shape = list(tensor.shape)
    if shape and shape[0] == batch:
        shape[0] += more
    for dim in free:
        shape[dim] = sizes.get(shape[dim], shape[dim])
    valued = not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta) and tensor.numel()
    if not valued or math.prod(shape) > _VALUES:
        return torch.empty(shape, dtype=tensor.dtype, device="meta")
    for dim, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        tensor = tensor.index_select(dim, (torch.arange(new) % old).to(tensor.device))
    return tensor
