"""Layers and functions whose ATen calls are known beforehand: these are made without running torch's Python code.

A call of a layer goes through hooks, torch.nn.functional, argument parsers and the dispatcher, which takes longer than
all that inference does with it. An entry knows the plain case of one layer in eval mode; it answers NotImplemented
for any other, which is then run as usual. `test_emitting.py` holds each against what running it records.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from passes.graph.emitted_functions import EMITTED, Emit, affine, is_plain, without_defaults
from passes.process.torch_private import buffers_of, has_global_hooks, parameters_of

aten = torch.ops.aten
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


def emit_layer(
    module: nn.Module, x: object, emit: Emit, tensors: Tensors, training: bool = False,
    known: dict[type, bool] | None = None,
) -> object:  # fmt: skip
    """What a layer of torch gives for `x`, its ATen calls made by `emit`; or NotImplemented.

    tensors: by name what stands on the meta device for a tensor of the layer, None for one that it lacks. training: in
    that mode, whatever that of the layer. known: for one run, which classes of layers are other than torch made them.
    """
    layer = (_IN_TRAINING if training else _LAYERS).get(type(module))
    if layer is None or not is_plain(x) or not x.is_meta or _changed(module, {} if known is None else known):
        return NotImplemented
    return layer(module, x, emit, tensors)


def own_tensors(module: nn.Module) -> Tensors:
    """The parameters and buffers of a layer by name; a getter in C, as a layer is asked for up to five of them."""
    return {**parameters_of(module), **buffers_of(module)}.__getitem__


def is_emitted(module: nn.Module) -> bool:
    """Whether calls of `module` may be made by `emit_layer`."""
    return type(module) in _LAYERS


def _changed(module: nn.Module, known: dict[type, bool]) -> bool:
    """Whether a call of `module` does more, or something else, than its class says. known: `emit_layer`."""
    own, kind = module.__dict__, type(module)
    if own["_forward_pre_hooks"] or own["_forward_hooks"] or not own.keys().isdisjoint(_REPLACEABLE):
        return True
    changed = known.get(kind)
    if changed is None:
        methods_of, methods = _METHODS[kind]
        changed = known[kind] = has_global_hooks() or not all(map(operator.is_, methods_of(kind), methods))
    return changed


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
    return affine(x, tensors("weight"), tensors("bias"), emit)


def _layer_norm(module: nn.LayerNorm, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    args = (list(module.normalized_shape), tensors("weight"), tensors("bias"), module.eps)
    return emit(aten.native_layer_norm.default, x, *args)[0]


def _max_pool(module: nn.MaxPool2d, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    if module.return_indices:
        return NotImplemented
    sizes = [list(_pair(size)) for size in (module.kernel_size, module.stride, module.padding, module.dilation)]
    func = aten.max_pool2d_with_indices.default
    return emit(func, *without_defaults(func, x, *sizes, module.ceil_mode))[0]


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
        return emit(chosen, *without_defaults(chosen, x, *(getattr(module, a) for a in attributes)))

    return entry


def _gelu(module: nn.GELU, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    return emit(aten.gelu.default, x) if module.approximate == "none" else NotImplemented


def _itself(module: object, x: torch.Tensor, emit: Emit, tensors: Tensors) -> object:
    return x


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
