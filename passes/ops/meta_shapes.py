"""ATen calls on the meta device: the commonest answered at once, all others by torch.

Only shapes are asked for, yet torch 2.13 spends up to some milliseconds of Python on a batch norm, a pooling or an
activation there. The trait `meta` of an operator gives the results, or None where the call is not the plain case that
it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from passes.ops.facts import facts_of
from passes.process.torch_private import OpOverload, TorchDispatchMode, schema_of

Shape = Sequence[int]


class LightMode(TorchDispatchMode):
    """A dispatch mode that is never compiled: torch imports its compiler, seconds of it, for those that might be."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class OnMeta(LightMode):
    """Keeps whatever a graph makes (``torch.zeros(4)``, ``x.to("cuda")``) on the meta device."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: Any = None
    ) -> object:
        return run_on_meta(func, args, on_meta(func, kwargs or {}))


def on_meta(func: OpOverload, kwargs: dict[str, object]) -> dict[str, Any]:
    """`kwargs` of an ATen call with any device replaced: only sizes are computed, whatever a program names."""
    if kwargs.get("device") is not None or _is_factory(func):
        return {**kwargs, "device": torch.device("meta")}
    return kwargs


@cache
def _is_factory(func: OpOverload) -> bool:
    arguments = schema_of(func).arguments
    takes_tensors = any("Tensor" in str(a.type) for a in arguments)
    return not takes_tensors and any(a.name == "device" for a in arguments)


def run_on_meta(func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    """``func(*args, **kwargs)`` for its shapes."""
    return facts_of(func).run_on_meta(args, kwargs)


def plain(answer: Callable[..., object]) -> Callable[..., Any]:
    """`answer` for the commonest calls: a tensor of floating point numbers on meta first, nothing by keyword."""

    def meta(first: torch.Tensor, *args: object, **kwargs: object) -> Any:
        return None if kwargs or not (first.is_meta and first.is_floating_point()) else answer(first, *args)

    return meta


def always() -> bool:
    return True


def never() -> bool:
    return False


def shaped(shape_of: Callable[..., Shape | None], any_layout: Callable[[], bool] = never) -> Callable[..., Any]:
    """A contiguous result of the shape that `shape_of` gives for the arguments.

    any_layout: whether it is so whatever the layout of the first operand; asked where that is not contiguous.
    """

    def answer(first: torch.Tensor, *args: object) -> torch.Tensor | None:
        shape = shape_of(first, *args) if first.is_contiguous() or any_layout() else None
        return None if shape is None else empty_on_meta(shape, first.dtype)

    return plain(answer)


def is_dense(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def filled(tensor: torch.Tensor) -> Shape | None:
    """The strides of a tensor without gaps whose dimensions are in the same order; None where they have none."""
    stride = tensor.stride()
    if tensor.is_contiguous():
        return stride
    if len(set(stride)) < len(stride) or 0 in stride:
        return None
    found, step = list(stride), 1
    for _, dim in sorted(zip(stride, range(len(stride)), strict=True)):
        found[dim] = step
        step *= tensor.shape[dim]
    return found


def made(first: torch.Tensor, shape: Shape, stride: Shape | None = None) -> torch.Tensor:
    """A tensor of the type of `first`, without gaps where no strides are given."""
    return empty_on_meta(shape, first.dtype, stride)


_forms: dict[object, torch.Tensor] = {}
_MOST_FORMS = 4096


def empty_on_meta(shape: Shape, dtype: torch.dtype, stride: Shape | None = None) -> torch.Tensor:
    """A tensor on the meta device. All of one form share a storage, which holds nothing there.

    An analysis makes thousands of few forms, and `data` of one takes a sixth of the time of `torch.empty`.
    """
    form = tuple(shape), dtype, None if stride is None else tuple(stride)
    known = _forms.get(form)
    if known is not None:
        return known.data
    if stride is None:
        new = torch.empty(shape, dtype=dtype, device="meta")
    else:
        new = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if type(new) is torch.Tensor and not new.is_inference():  # as in all modes but those of a caller
        if len(_forms) == _MOST_FORMS:
            _forms.clear()
        _forms[form] = new.data  # the new one itself may be seen otherwise in place
    return new


def windows(
    sizes: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, ceil_mode: bool = False
) -> list[int] | None:
    """How many windows fit, dimension by dimension (`ceil_mode`: or begin inside); None where one does not."""
    found = []
    for size, width, step, pad, spread in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = size + 2 * pad - spread * (width - 1) - 1
        count = room // step + 1
        if ceil_mode and room % step and count * step < size + pad:
            count += 1
        found.append(count)
    return found if all(size > 0 for size in found) else None
