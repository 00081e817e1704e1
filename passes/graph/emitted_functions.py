"""Functions whose ATen calls are known beforehand: these are made without running torch's Python code.

An entry knows the plain case of one function, on tensors of floating point numbers; it answers NotImplemented for any
other, which is then run as usual. `test_emitting.py` holds each against what running it records.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeGuard

import torch
from torch.nn import functional as F

from passes.graph.module_copies import TENSORS
from passes.process.torch_private import OpOverload, schema_of

aten = torch.ops.aten
Emit: TypeAlias = Callable[..., Any]  # emit(func, *args, **kwargs) makes one ATen call


def is_plain(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a tensor of floating point numbers with elements, of no class of its own."""
    return type(value) in TENSORS and value.is_floating_point() and value.numel() > 0  # type: ignore[attr-defined]


@cache
def _defaults(func: OpOverload) -> list[object]:
    return [argument.default_value if argument.has_default_value() else ... for argument in schema_of(func).arguments]


def without_defaults(func: OpOverload, *args: object) -> tuple[object, ...]:
    """The arguments without those at the end that have their default value, which torch leaves out."""
    defaults = _defaults(func)
    while args and type(args[-1]) is type(defaults[len(args) - 1]) and args[-1] == defaults[len(args) - 1]:
        args = args[:-1]
    return args


def affine(x: torch.Tensor, weight: torch.Tensor, bias: object, emit: Emit) -> object:
    rank = x.dim()
    if bias is None or weight.dim() != 2 or rank not in (2, 3, 4) or not x.is_contiguous():
        return NotImplemented
    if rank > 2:
        lead = list(x.shape[:-1])
        x = emit(aten.view.default, x, [x.numel() // x.shape[-1], x.shape[-1]])
    result = emit(aten.addmm.default, bias, x, emit(aten.t.default, weight))
    return result if rank == 2 else emit(aten.view.default, result, [*lead, result.shape[-1]])


def _elementwise(func: OpOverload, in_place: bool = False) -> Callable[..., object]:
    """Two tensors, one of which may be broadcast."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) != 2 or not all(map(is_plain, args)) or args[0].dtype != args[1].dtype:
            return NotImplemented
        if in_place and args[0].shape != args[1].shape:
            return NotImplemented
        return emit(func, *args)

    return entry


def _rectified(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    in_place = kwargs.get("inplace", False)
    if len(args) != 1 or not is_plain(args[0]) or type(in_place) is not bool or not kwargs.keys() <= {"inplace"}:
        return NotImplemented
    return emit(aten.relu_.default if in_place else aten.relu.default, args[0])


def _linear_function(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    if len(args) + len(kwargs) != 3 or not kwargs.keys() <= {"weight", "bias"} or not args:
        return NotImplemented
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    if not all(is_plain(tensor) for tensor in given.values()):
        return NotImplemented
    return affine(given["input"], given["weight"], given["bias"], emit)


def _joined(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("tensors", "dim"), args, strict=False)), **kwargs}
    if not args or len(args) + len(kwargs) != 2 or type(given.get("dim")) is not int:
        return NotImplemented
    tensors = args[0]
    if not isinstance(tensors, (tuple, list)) or not tensors or not all(map(is_plain, tensors)):
        return NotImplemented
    return emit(aten.cat.default, *without_defaults(aten.cat.default, list(tensors), given["dim"]))


def _chunked(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given: dict[str, Any] = {**dict(zip(("input", "chunks", "dim"), args, strict=False)), **kwargs}
    if not args or not is_plain(args[0]) or len(args) + len(kwargs) != 3 or len(given) != 3:
        return NotImplemented
    x, chunks, dim = args[0], given.get("chunks"), given.get("dim")
    if type(chunks) is not int or type(dim) is not int or chunks < 1 or not -x.dim() <= dim < x.dim():
        return NotImplemented
    size = -(-x.shape[dim] // chunks)  # of all pieces but the last, which may be smaller
    return tuple(emit(aten.split.Tensor, *without_defaults(aten.split.Tensor, x, size, dim)))


def _with_sizes(func: OpOverload) -> Callable[..., object]:
    """A tensor seen otherwise, by whole numbers that are given one by one or in a list: sizes, or dimensions."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) < 2 or not is_plain(args[0]):
            return NotImplemented
        given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if not given or {*map(type, given)} != {int}:
            return NotImplemented
        return emit(func, args[0], list(given))

    return entry


def _with_dims(func: OpOverload, count: int) -> Callable[..., object]:
    """A tensor seen otherwise, by `count` dimensions."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) != 1 + count or not is_plain(args[0]) or {*map(type, args[1:])} != {int}:
            return NotImplemented
        return emit(func, *args)

    return entry


def _reshaped(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    return _viewed(args, kwargs, emit) if is_plain(args[0]) and args[0].is_contiguous() else NotImplemented


def _contiguous(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    if kwargs or len(args) != 1 or not is_plain(args[0]):
        return NotImplemented
    if args[0].is_contiguous():
        return args[0]
    return emit(aten.clone.default, args[0], memory_format=torch.contiguous_format)


def _dropped(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
    return args[0] if args and given.get("training") is False and 0 <= given.get("p", 0.5) <= 1 else NotImplemented


def _softmax(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("input", "dim"), args, strict=False)), **kwargs}
    if given.keys() != {"input", "dim"} or type(given["dim"]) is not int or not is_plain(given["input"]):
        return NotImplemented
    return emit(aten._softmax.default, given["input"], given["dim"], False)


def _unflattened(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    if kwargs or len(args) != 3 or not is_plain(args[0]) or type(args[1]) is not int:
        return NotImplemented
    x, dim, sizes = args
    if not isinstance(sizes, (tuple, list)) or {*map(type, sizes)} != {int} or not -x.dim() <= dim < x.dim():
        return NotImplemented
    shape = list(x.shape)
    if min(sizes) < 1 or math.prod(sizes) != shape[dim]:
        return NotImplemented
    dim %= len(shape)
    return emit(aten.view.default, x, [*shape[:dim], *sizes, *shape[dim + 1 :]])


def _split(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given: dict[str, Any] = {**dict(zip(("tensor", "size", "dim"), args, strict=False)), **kwargs}
    if len(args) < 2 or not is_plain(args[0]) or len(args) + len(kwargs) != len(given) or not given.keys() <= _OF_SPLIT:
        return NotImplemented
    x, size, dim = args[0], args[1], given.get("dim", 0)
    sizes: Any = size
    if type(dim) is not int or not -x.dim() <= dim < x.dim():
        return NotImplemented
    if type(size) is int and size > 0:
        func = aten.split.Tensor
    elif isinstance(size, (tuple, list)) and {*map(type, size)} == {int} and min(size) > 0:
        func, sizes = aten.split_with_sizes.default, list(size)
        if sum(size) != x.shape[dim]:
            return NotImplemented
    else:
        return NotImplemented
    return tuple(emit(func, *without_defaults(func, x, sizes, dim)))


def _item(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    """``x[:, 2:4, 0]``: of whole numbers and slices alone."""
    if kwargs or len(args) != 2 or not is_plain(args[0]) or not _is_of_places(args[0], args[1]):
        return NotImplemented
    if isinstance(args[1], slice):  # which is made of a whole dimension too, where it stands alone
        return _piece(args[0], 0, args[1], emit)
    found = _seen(args[0], args[1], emit)
    return emit(aten.alias.default, found) if found is args[0] else found


def _item_set(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    """``x[:, 2:4, 0] = 1.0``: a number, at whole numbers and slices."""
    if kwargs or len(args) != 3 or not is_plain(args[0]) or type(args[2]) not in (int, float):
        return NotImplemented
    x, key, number = args
    if not x.is_meta or not _is_of_places(x, key):
        return NotImplemented
    made = emit(aten.scalar_tensor.default, number, dtype=x.dtype, layout=torch.strided, device=x.device)
    place = _seen(x, key, emit)
    if place.dim():
        made = emit(aten.view.default, made, [])
        made = emit(aten.expand.default, made, list(place.shape))
    emit(aten.copy_.default, place, made)
    return None


def _is_of_places(x: torch.Tensor, key: object) -> bool:
    """Whether `key` takes positions of `x` by whole numbers, and by slices that end within it."""
    parts = key if isinstance(key, tuple) else (key,)
    if not parts or len(parts) > x.dim():
        return False
    for part, size in zip(parts, x.shape, strict=False):
        if type(part) is int:
            if not -size <= part < size:
                return False
        elif not isinstance(part, slice) or part.step not in (None, 1):
            return False
        else:
            limits = [limit for limit in (part.start, part.stop) if limit is not None]
            if not all([type(limit) is int and -size <= limit <= size for limit in limits]):
                return False
    return True


def _seen(x: torch.Tensor, key: object, emit: Emit) -> Any:
    """What a key takes of `x`, part by part; slices of a whole dimension take nothing."""
    dim = 0
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, slice):
            if part.start not in (None, 0) or part.stop not in (None, x.shape[dim]):
                x = _piece(x, dim, part, emit)
            dim += 1
        else:
            x = emit(aten.select.int, x, dim, part)
    return x


def _piece(x: torch.Tensor, dim: int, part: slice, emit: Emit) -> Any:
    end = sys.maxsize if part.stop is None else part.stop
    return emit(aten.slice.Tensor, x, *(dim, part.start or 0, end))


def emit_attention(query: Any, key: Any, value: Any, scale: object, emit: Emit) -> object:
    """Attention of heads (batch, heads, length, size) by the products that it is made of, without a mask.

    Tensors are given up in the order in which torch does so, as the lifetimes of tensors are recorded as well.
    """
    given = query, key, value
    if not all(map(is_plain, given)) or not all(tensor.is_meta for tensor in given):
        return NotImplemented
    if query.dtype not in _IN_OWN_PRECISION or not _are_batches(query, key.mT) or not _are_batches(key.mT, value):
        return NotImplemented
    if scale is not None and not (isinstance(scale, (int, float)) and scale > 0):
        return NotImplemented
    root = math.sqrt(1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scaled = emit(aten.mul.Scalar, query, root)
    transposed = emit(aten.transpose.int, key, -2, -1)
    other = emit(aten.mul.Scalar, transposed, root)
    weights = _multiplied((scaled, other), {}, emit)
    del other, transposed
    weights = emit(aten._safe_softmax.default, weights, -1)
    return _multiplied((weights, value), {}, emit)


def _are_batches(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold as many matrices each, in two dimensions, as can be multiplied."""
    alike = left.dim() == right.dim() == 4 and left.dtype == right.dtype and left.shape[:2] == right.shape[:2]
    return alike and left.shape[3] == right.shape[2]


def _multiplied(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> Any:
    if kwargs or len(args) != 2 or not all(map(is_plain, args)) or not _are_batches(*args):
        return NotImplemented
    left = _one_batch(emit(aten.expand.default, args[0], list(args[0].shape)), emit)
    right = _one_batch(emit(aten.expand.default, args[1], list(args[1].shape)), emit)
    shape = [*args[0].shape[:3], args[1].shape[3]]
    result = emit(aten._unsafe_view.default, emit(aten.bmm.default, left, right), shape)
    del right, left
    return result


def _one_batch(matrices: torch.Tensor, emit: Emit) -> Any:
    """The matrices in one dimension: a view where strides allow it, else a copy, as in `torch.reshape`."""
    outer, inner, *size = matrices.shape
    shape = [outer * inner, *size]
    if 1 in (outer, inner) or matrices.stride(0) == inner * matrices.stride(1):
        return emit(aten.view.default, matrices, shape)
    contiguous = torch.contiguous_format
    return emit(aten._unsafe_view.default, emit(aten.clone.default, matrices, memory_format=contiguous), shape)


_viewed = _with_sizes(aten.view.default)
_OF_SPLIT = {"tensor", "size", "dim"}
_IN_OWN_PRECISION = (torch.float32, torch.float64)  # attention in others is computed in one of these
EMITTED: dict[object, Callable[..., object]] = {
    operator.add: _elementwise(aten.add.Tensor),
    operator.iadd: _elementwise(aten.add_.Tensor, in_place=True),
    operator.mul: _elementwise(aten.mul.Tensor),
    torch.Tensor.add: _elementwise(aten.add.Tensor),
    torch.Tensor.add_: _elementwise(aten.add_.Tensor, in_place=True),
    torch.Tensor.mul: _elementwise(aten.mul.Tensor),
    torch.add: _elementwise(aten.add.Tensor),
    torch.mul: _elementwise(aten.mul.Tensor),
    torch.relu: _rectified,
    F.relu: _rectified,
    F.linear: _linear_function,
    torch.cat: _joined,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _multiplied),
    **dict.fromkeys((torch.chunk, torch.Tensor.chunk), _chunked),
    **dict.fromkeys((torch.permute, torch.Tensor.permute), _with_sizes(aten.permute.default)),
    **dict.fromkeys((torch.transpose, torch.Tensor.transpose), _with_dims(aten.transpose.int, 2)),
    **dict.fromkeys((torch.unsqueeze, torch.Tensor.unsqueeze), _with_dims(aten.unsqueeze.default, 1)),
    **dict.fromkeys((torch.reshape, torch.Tensor.reshape), _reshaped),
    torch.Tensor.view: _viewed,
    torch.Tensor.unflatten: _unflattened,
    torch.Tensor.split: _split,
    torch.Tensor.__getitem__: _item,
    torch.Tensor.__setitem__: _item_set,
    torch.Tensor.contiguous: _contiguous,
    F.dropout: _dropped,
    F.softmax: _softmax,
}
