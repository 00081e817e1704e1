"""ATen calls on the meta device: the commonest answered at once, all others by torch.

Only shapes are asked for, yet torch 2.13 spends up to some milliseconds of Python on a batch norm, a pooling or an
activation there. An entry of the table gives the result's shape, or None where the call is not the plain case that it
knows; dtype and layout are those of the first operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Shape = Sequence[int]


class LightMode(TorchDispatchMode):
    """A dispatch mode that is never compiled: torch imports its compiler, seconds of it, for those that might be."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class OnMeta(LightMode):
    """Keeps whatever a graph makes (``torch.zeros(4)``, ``x.to("cuda")``) on the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run_on_meta(func, args, on_meta(func, kwargs or {}))


def on_meta(func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` of an ATen call with any device replaced: only sizes are computed, whatever a program names."""
    if kwargs.get("device") is not None or _is_factory(func):
        return {**kwargs, "device": torch.device("meta")}
    return kwargs


@cache
def _is_factory(func: Any) -> bool:
    arguments = func._schema.arguments
    takes_tensors = any("Tensor" in str(a.type) for a in arguments)
    return not takes_tensors and any(a.name == "device" for a in arguments)


def run_on_meta(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)`` for its shapes."""
    first = args[0] if args else None
    if kwargs or not isinstance(first, torch.Tensor):
        if func is aten.cat.default and not kwargs:
            return _joined(func, args)
        if func is aten.clone.default and kwargs == _CONTIGUOUS and isinstance(first, torch.Tensor) and first.is_meta:
            return _made(first, first.shape)
        return func(*args, **kwargs)
    if not (first.is_meta and first.is_floating_point()):
        return func(*args)
    shape_of = _SHAPES.get(func)
    if shape_of is not None:
        if func in _ANY_LAYOUT or first.is_contiguous():
            shape = shape_of(*args)
            if shape is not None:
                return _made(first, shape)
    elif func in _POINTWISE:
        if all(_alike(first, other) for other in args[1:]):
            if func in _IN_PLACE:
                return first
            strides = _filled(first)
            if strides is not None:
                return _made(first, first.shape, strides)
        elif func in _BROADCAST and len(args) == 2:
            layout = _broadcast(first, args[1])
            if layout is not None:
                return _made(first, *layout)
    elif func is aten.native_layer_norm.default and first.itemsize >= 4:
        dims, shape = len(args[1]), tuple(first.shape)
        if 0 < dims <= len(shape) and shape[-dims:] == tuple(args[1]):
            statistics = shape[:-dims] + (1,) * dims
            return _made(first, shape), _made(first, statistics), _made(first, statistics)
    elif func is aten.native_batch_norm.default and _is_dense(first):
        statistics = first.shape[1:2] if args[5] else (0,)
        return _made(first, first.shape, first.stride()), _made(first, statistics), _made(first, statistics)
    elif func is aten.max_pool2d_with_indices.default and first.is_contiguous():
        found = _pooled(*args)
        if found is not None:
            return _made(first, found), torch.empty(found, dtype=torch.int64, device="meta")
    return func(*args)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def _filled(tensor: torch.Tensor) -> Shape | None:
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


def _made(first: torch.Tensor, shape: Shape, stride: Shape | None = None) -> torch.Tensor:
    if stride is None:
        return torch.empty(shape, dtype=first.dtype, device="meta")
    return torch.empty_strided(shape, stride, dtype=first.dtype, device="meta")


def _alike(first: torch.Tensor, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        same = other.shape == first.shape and other.dtype == first.dtype and other.is_meta
        return same and other.stride() == first.stride()
    return not isinstance(other, complex)


def _broadcast(first: torch.Tensor, other: torch.Tensor) -> tuple[Shape, Shape | None] | None:
    """Shape and strides of two tensors of which one is broadcast, where they are plain to see."""
    if not other.is_meta or other.dtype != first.dtype or not other.numel() or not first.numel():
        return None
    rank = max(first.dim(), other.dim())
    left, right = ([1] * (rank - t.dim()) + list(t.shape) for t in (first, other))
    if any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        return None
    shape = [max(a, b) for a, b in zip(left, right, strict=True)]
    if first.is_contiguous() and other.is_contiguous():
        return shape, None
    full, small = (first, other) if first.numel() >= other.numel() else (other, first)
    # The order of the dimensions is that of the full one: the other has none, or comes second.
    decided = small.shape == full.shape or sum(b > 1 for b in small.shape) <= 1
    layout = _filled(full) if decided and list(full.shape) == shape else None
    return None if layout is None else (shape, layout)


def _joined(func: Any, args: tuple) -> Any:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    rank = first.dim()
    plain = all(
        t.is_meta and t.dtype == first.dtype and t.dim() == rank and t.is_contiguous() and t.numel() for t in tensors
    )
    if not plain:
        return func(*args)
    shape = list(first.shape)
    for other in tensors[1:]:
        if any(a != b for d, (a, b) in enumerate(zip(shape, other.shape, strict=True)) if d != dim % rank):
            return func(*args)  # torch says what is wrong
        shape[dim % rank] += other.shape[dim % rank]
    return _made(first, shape)


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Shape, padding: Shape, dilation: Shape, transposed: bool,
    output_padding: Shape, groups: int,
) -> Shape | None:  # fmt: skip
    fits = x.dim() == weight.dim() and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if transposed or not fits or x.dtype != weight.dtype or not weight.is_contiguous():
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        return None
    rank = x.dim() - 2
    if not len(stride) == len(padding) == len(dilation) == rank:
        return None
    space = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return None if space is None else (x.shape[0], weight.shape[0], *space)


def _windows(
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


def _pooled(
    x: torch.Tensor, kernel: Shape, stride: Shape = (), padding: Shape = (0,), dilation: Shape = (1,),
    ceil_mode: bool = False,
) -> Shape | None:  # fmt: skip
    """The shape of a maximum over windows of the last two dimensions."""
    kernel, stride, padding, dilation = (
        tuple(given) * (2 // len(given)) for given in (kernel, stride or kernel, padding, dilation)
    )
    if x.dim() not in (3, 4) or not x.numel() or any(2 * p > k for k, p in zip(kernel, padding, strict=True)):
        return None
    space = _windows(x.shape[-2:], kernel, stride, padding, dilation, ceil_mode)
    return None if space is None else (*x.shape[:-2], *space)


def _mean(x: torch.Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shape | None:
    if not dim or dtype is not None or any(not -x.dim() <= d < x.dim() for d in dim):
        return None
    gone = {d % x.dim() for d in dim}
    if len(gone) < len(dim):
        return None
    return [1 if d in gone else size for d, size in enumerate(x.shape) if keepdim or d not in gone]


def _norm(x: torch.Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shape | None:
    return _mean(x, dim, keepdim, dtype)


def _product(left: torch.Tensor, right: torch.Tensor) -> Shape | None:
    fits = left.shape[-1] == right.shape[-2] and left.shape[:-2] == right.shape[:-2] and left.dtype == right.dtype
    return (*left.shape[:-1], right.shape[-1]) if fits else None


def _product_added(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> Shape | None:
    return _product(left, right) if bias.shape == right.shape[-1:] and bias.dtype == left.dtype else None


def _softmax(x: torch.Tensor, dim: int, to: Any = None) -> Shape | None:
    """`to`: whether, or to which type, the result is converted."""
    return None if to or not -x.dim() <= dim < x.dim() else tuple(x.shape)


def _rolled(x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Shape | None:
    fits = len(shifts) == len(dims) and all(-x.dim() <= d < x.dim() for d in dims)
    return tuple(x.shape) if fits else None


def _adaptive(x: torch.Tensor, size: Shape) -> Shape | None:
    return (*x.shape[:-2], *size) if x.dim() in (3, 4) and x.numel() and len(size) == 2 else None


_SHAPES: dict[Any, Callable[..., Shape | None]] = {
    aten.convolution.default: _convolution,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product_added,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten.roll.default: _rolled,
    aten._adaptive_avg_pool2d.default: _adaptive,
}

# Operators that give a contiguous result whatever the layout of the first operand (in a convolution, the weight's
# decides).
_ANY_LAYOUT = frozenset(
    (
        *(aten.convolution.default, aten.mm.default, aten.bmm.default, aten.addmm.default),
        *(aten.mean.dim, aten.linalg_vector_norm.default),
    )
)
_CONTIGUOUS = {"memory_format": torch.contiguous_format}

_SAME = (
    *("relu", "hardtanh", "silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "elu"),
    *("clamp", "clamp_min", "clamp_max"),
)
_WITH_ONE_MORE = ("add", "sub", "mul", "div")


def _overloads(names: Sequence[str], kinds: Sequence[str]) -> frozenset[Any]:
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    return frozenset(getattr(packet, kind) for packet in packets for kind in kinds if hasattr(packet, kind))


_IN_PLACE = _overloads([f"{name}_" for name in _SAME], ["default"]) | _overloads(
    [f"{name}_" for name in _WITH_ONE_MORE], ["Tensor", "Scalar"]
)
_BROADCAST = _overloads(_WITH_ONE_MORE, ["Tensor"])
_POINTWISE = _IN_PLACE | _BROADCAST | _overloads(_SAME, ["default"]) | _overloads(_WITH_ONE_MORE, ["Scalar"])
