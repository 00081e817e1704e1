"""Layers and functions whose ATen calls are known beforehand: these are made without running torch's Python code.

A call of a layer goes through hooks, torch.nn.functional, argument parsers and the dispatcher, which takes longer than
all that inference does with it. An entry knows the plain case of one layer in eval mode; it answers NotImplemented
for any other, which is then run as usual. `test_emitting.py` holds each against what running it records.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from passes.graph.module_copies import TENSORS
from passes.process.torch_private import OpOverload, buffers_of, has_global_hooks, parameters_of, schema_of

aten = torch.ops.aten
Emit: TypeAlias = Callable[..., Any]  # emit(func, *args, **kwargs) makes one ATen call
Tensors: TypeAlias = Callable[[str], Any]  # the layer's parameter or buffer of a name, or None


def emit_node(
    node: fx.Node, args: tuple, kwargs: Mapping[str, object], emit: Emit, module_of: Callable[[str], nn.Module | None],
    on_meta: Callable[[torch.Tensor | None], object],
) -> object:  # fmt: skip
    """What `node` gives for `args` on the meta device, its ATen calls made by `emit`; or NotImplemented.

    module_of: the layer that a target names. on_meta: what stands on the meta device for a tensor of a layer, None for
    one that it lacks.
    """
    if node.op == "call_function":
        function = EMITTED.get(node.target) if getattr(node.target, "__hash__", None) else None
        return NotImplemented if function is None else function(args, kwargs, emit)
    module = module_of(str(node.target)) if node.op == "call_module" else None
    if module is None or len(args) != 1 or kwargs:
        return NotImplemented
    return emit_layer(module, args[0], emit, lambda name: on_meta(getattr(module, name)))


def emit_layer(module: nn.Module, x: object, emit: Emit, tensors: Tensors, training: bool = False) -> object:
    """What a layer of torch gives for `x`, its ATen calls made by `emit`; or NotImplemented.

    tensors: by name what stands on the meta device for a tensor of the layer, None for one that it lacks. training: in
    that mode, whatever that of the layer.
    """
    layer = (_IN_TRAINING if training else _LAYERS).get(type(module))
    if layer is None or not _is_plain(x) or not x.is_meta or _changed(module):
        return NotImplemented
    return layer(module, x, emit, tensors)


def own_tensors(module: nn.Module) -> Tensors:
    """The parameters and buffers of a layer by name; a getter in C, as a layer is asked for up to five of them."""
    return {**parameters_of(module), **buffers_of(module)}.__getitem__


def is_emitted(module: nn.Module) -> bool:
    """Whether calls of `module` may be made by `emit_layer`."""
    return type(module) in _LAYERS


def _is_plain(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a tensor of floating point numbers with elements, of no class of its own."""
    return type(value) in TENSORS and value.is_floating_point() and value.numel() > 0  # type: ignore[attr-defined]


def _changed(module: nn.Module) -> bool:
    """Whether a call of `module` does more, or something else, than its class says."""
    own = module.__dict__
    if own["_forward_pre_hooks"] or own["_forward_hooks"] or not own.keys().isdisjoint(_REPLACEABLE):
        return True
    if has_global_hooks():
        return True
    methods_of, methods = _METHODS[type(module)]
    return not all(map(operator.is_, methods_of(type(module)), methods))


@cache
def _defaults(func: OpOverload) -> list[object]:
    return [argument.default_value if argument.has_default_value() else ... for argument in schema_of(func).arguments]


def _without_defaults(func: OpOverload, *args: object) -> tuple[object, ...]:
    """The arguments without those at the end that have their default value, which torch leaves out."""
    defaults = _defaults(func)
    while args and type(args[-1]) is type(defaults[len(args) - 1]) and args[-1] == defaults[len(args) - 1]:
        args = args[:-1]
    return args


def _convolution(module: nn.Conv2d, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    rank = len(module.kernel_size)
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or x.dim() != rank + 2:
        return NotImplemented
    geometry = [list(module.stride), list(module.padding), list(module.dilation), False, [0] * rank, module.groups]
    return emit(aten.convolution.default, x, tensors("weight"), tensors("bias"), *geometry)


def _batch_norm(
    module: nn.BatchNorm2d, x: torch.Tensor, emit: Emit, tensors: Tensors, training: bool = False
) -> object:
    mean, variance = tensors("running_mean"), tensors("running_var")
    if mean is None or variance is None or x.dim() not in _RANKS[type(module)]:
        return NotImplemented
    momentum = 0.0 if module.momentum is None else module.momentum
    return emit(
        aten.native_batch_norm.default, x, tensors("weight"), tensors("bias"), mean, variance, training, momentum,
        module.eps,
    )[0]  # fmt: skip


def _training_batch_norm(module: nn.BatchNorm2d, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    count = tensors("num_batches_tracked")
    if count is None or module.momentum is None or not module.track_running_stats or x.numel() <= x.shape[1]:
        return NotImplemented
    if tensors("running_mean") is None or x.dim() not in _RANKS[type(module)]:
        return NotImplemented
    emit(aten.add_.Tensor, count, 1)
    return _batch_norm(module, x, emit, tensors, training=True)


def _linear(module: object, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    return _affine(x, tensors("weight"), tensors("bias"), emit)


def _affine(x: torch.Tensor, weight: torch.Tensor, bias: object, emit: Emit) -> object:
    rank = x.dim()
    if bias is None or weight.dim() != 2 or rank not in (2, 3, 4) or not x.is_contiguous():
        return NotImplemented
    if rank > 2:
        lead = list(x.shape[:-1])
        x = emit(aten.view.default, x, [x.numel() // x.shape[-1], x.shape[-1]])
    result = emit(aten.addmm.default, bias, x, emit(aten.t.default, weight))
    return result if rank == 2 else emit(aten.view.default, result, [*lead, result.shape[-1]])


def _layer_norm(module: nn.LayerNorm, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    args = (list(module.normalized_shape), tensors("weight"), tensors("bias"), module.eps)
    return emit(aten.native_layer_norm.default, x, *args)[0]


def _max_pool(module: nn.MaxPool2d, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    if module.return_indices:
        return NotImplemented
    sizes = [list(_pair(size)) for size in (module.kernel_size, module.stride, module.padding, module.dilation)]
    func = aten.max_pool2d_with_indices.default
    return emit(func, *_without_defaults(func, x, *sizes, module.ceil_mode))[0]


def _global_pool(module: nn.AdaptiveAvgPool2d, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    if _pair(module.output_size) != (1, 1) or x.dim() != 4 or not x.is_contiguous():
        return NotImplemented
    return emit(aten.mean.dim, x, [-1, -2], True)


def _pair(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _activation(name: str, *attributes: str) -> Callable[..., object]:
    """An activation: ``aten.name``, in place where the layer says so, with these of the layer's attributes."""
    func = getattr(aten, name).default
    in_place: Any = getattr(getattr(aten, f"{name}_", None), "default", None)

    def entry(module: object, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
        chosen = in_place if getattr(module, "inplace", False) else func
        if not attributes:
            return emit(chosen, x)
        return emit(chosen, *_without_defaults(chosen, x, *(getattr(module, a) for a in attributes)))

    return entry


def _gelu(module: nn.GELU, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    return emit(aten.gelu.default, x) if module.approximate == "none" else NotImplemented


def _itself(module: object, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    return x


def _elementwise(func: OpOverload, in_place: bool = False) -> Callable[..., object]:
    """Two tensors, one of which may be broadcast."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) != 2 or not all(map(_is_plain, args)) or args[0].dtype != args[1].dtype:
            return NotImplemented
        if in_place and args[0].shape != args[1].shape:
            return NotImplemented
        return emit(func, *args)

    return entry


def _rectified(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    in_place = kwargs.get("inplace", False)
    if len(args) != 1 or not _is_plain(args[0]) or type(in_place) is not bool or not kwargs.keys() <= {"inplace"}:
        return NotImplemented
    return emit(aten.relu_.default if in_place else aten.relu.default, args[0])


def _linear_function(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    if len(args) + len(kwargs) != 3 or not kwargs.keys() <= {"weight", "bias"} or not args:
        return NotImplemented
    given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    if not all(_is_plain(tensor) for tensor in given.values()):
        return NotImplemented
    return _affine(given["input"], given["weight"], given["bias"], emit)


def _joined(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("tensors", "dim"), args, strict=False)), **kwargs}
    if not args or len(args) + len(kwargs) != 2 or type(given.get("dim")) is not int:
        return NotImplemented
    tensors = args[0]
    if not isinstance(tensors, (tuple, list)) or not tensors or not all(map(_is_plain, tensors)):
        return NotImplemented
    return emit(aten.cat.default, *_without_defaults(aten.cat.default, list(tensors), given["dim"]))


def _chunked(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given: dict[str, Any] = {**dict(zip(("input", "chunks", "dim"), args, strict=False)), **kwargs}
    if not args or not _is_plain(args[0]) or len(args) + len(kwargs) != 3 or len(given) != 3:
        return NotImplemented
    x, chunks, dim = args[0], given.get("chunks"), given.get("dim")
    if type(chunks) is not int or type(dim) is not int or chunks < 1 or not -x.dim() <= dim < x.dim():
        return NotImplemented
    size = -(-x.shape[dim] // chunks)  # of all pieces but the last, which may be smaller
    return tuple(emit(aten.split.Tensor, *_without_defaults(aten.split.Tensor, x, size, dim)))


def _with_sizes(func: OpOverload) -> Callable[..., object]:
    """A tensor seen otherwise, by whole numbers that are given one by one or in a list: sizes, or dimensions."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) < 2 or not _is_plain(args[0]):
            return NotImplemented
        given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if not given or {*map(type, given)} != {int}:
            return NotImplemented
        return emit(func, args[0], list(given))

    return entry


def _with_dims(func: OpOverload, count: int) -> Callable[..., object]:
    """A tensor seen otherwise, by `count` dimensions."""

    def entry(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
        if kwargs or len(args) != 1 + count or not _is_plain(args[0]) or {*map(type, args[1:])} != {int}:
            return NotImplemented
        return emit(func, *args)

    return entry


def _reshaped(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    return _viewed(args, kwargs, emit) if _is_plain(args[0]) and args[0].is_contiguous() else NotImplemented


def _contiguous(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    if kwargs or len(args) != 1 or not _is_plain(args[0]):
        return NotImplemented
    if args[0].is_contiguous():
        return args[0]
    return emit(aten.clone.default, args[0], memory_format=torch.contiguous_format)


def _dropped(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
    return args[0] if args and given.get("training") is False and 0 <= given.get("p", 0.5) <= 1 else NotImplemented


def _softmax(args: tuple, kwargs: Mapping[str, object], emit: Emit) -> object:
    given = {**dict(zip(("input", "dim"), args, strict=False)), **kwargs}
    if given.keys() != {"input", "dim"} or type(given["dim"]) is not int or not _is_plain(given["input"]):
        return NotImplemented
    return emit(aten._softmax.default, given["input"], given["dim"], False)


def emit_attention(query: Any, key: Any, value: Any, scale: object, emit: Emit) -> object:
    """Attention of heads (batch, heads, length, size) by the products that it is made of, without a mask.

    Tensors are given up in the order in which torch does so, as the lifetimes of tensors are recorded as well.
    """
    given = query, key, value
    if not all(map(_is_plain, given)) or not all(tensor.is_meta for tensor in given):
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
    if kwargs or len(args) != 2 or not all(map(_is_plain, args)) or not _are_batches(*args):
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
_IN_OWN_PRECISION = (torch.float32, torch.float64)  # attention in others is computed in one of these
_LAYERS: dict[object, Callable[..., object]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity), _itself),
    **dict.fromkeys((nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear), _linear),
    nn.LayerNorm: _layer_norm,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _global_pool,
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("hardtanh", "min_val", "max_val"),
    nn.SiLU: _activation("silu"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.GELU: _gelu,
    nn.LeakyReLU: _activation("leaky_relu", "negative_slope"),
    nn.ELU: _activation("elu", "alpha"),
}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IN_TRAINING = {kind: entry for kind, entry in _LAYERS.items() if kind not in _DROPOUTS} | dict.fromkeys(
    _BATCH_NORMS, _training_batch_norm
)
_RANKS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
# What a program may put into the place of a layer's own, as a plain attribute.
_REPLACEABLE = frozenset({"forward", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
# For each class what gets the methods that a call of a layer runs, and these as they were when torch was imported.
_METHODS: dict[object, tuple[Callable[[type], tuple[object, ...]], tuple[object, ...]]] = {
    kind: (methods_of, methods_of(kind))
    for kind in _LAYERS
    for methods_of in [
        operator.attrgetter("__call__", "forward", *(["_conv_forward"] if hasattr(kind, "_conv_forward") else []))
    ]
}
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
    torch.Tensor.contiguous: _contiguous,
    F.dropout: _dropped,
    F.softmax: _softmax,
}
