"""What operators that take statistics give on surviving positions alone, written apart from the rewriting.

The proof of a pruned network needs them: where removing units changes the surviving values, the masked network is the
dense one with these in place of the operators. An operator that mixes and is not in the table keeps its axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from passes.axes.expressions import Axis, Variable, leaves
from passes.axes.index_sets import Mask, survivors
from passes.ops import Record

aten = torch.ops.aten


def narrowed(axis: Axis, masks: Mapping[Variable, Mask]) -> bool:
    return any(v in masks for v in leaves(axis))


def column(mask: np.ndarray, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    shape = [1] * tensor.dim()
    shape[dim] = len(mask)
    return torch.from_numpy(mask).to(tensor.device, tensor.dtype).reshape(shape)


def _reduce(func, args, kwargs, record: Record, masks):
    """A reduction of the surviving positions."""
    gone = {v for axis in record.mixed for v in leaves(axis)}
    tensor = args[0]
    for dim, axis in enumerate(record.inputs[0].axes):
        if narrowed(axis, masks) and set(leaves(axis)) & gone:
            index = torch.from_numpy(np.flatnonzero(survivors(axis, masks))).to(tensor.device)
            tensor = tensor.index_select(dim, index)
    return func(tensor, *args[1:], **kwargs)


def _weights(record: Record, tensor: torch.Tensor, masks, dims: Iterable[int]) -> torch.Tensor:
    """One where a position survives along all of `dims`, broadcast to `tensor`."""
    result = torch.ones((1,) * tensor.dim(), dtype=tensor.dtype, device=tensor.device)
    for dim in dims:
        axis = record.inputs[0].axes[dim]
        if narrowed(axis, masks):
            result = result * column(survivors(axis, masks), tensor, dim)
    return result.expand(tensor.shape)


def _layer_norm(func, args, kwargs, record: Record, masks):
    x, shape, weight, bias, epsilon = args
    dims = range(x.dim() - len(shape), x.dim())
    here = _weights(record, x, masks, dims)
    count = here.sum(tuple(dims), keepdim=True)
    mean = (x * here).sum(tuple(dims), keepdim=True) / count
    variance = ((x - mean).square() * here).sum(tuple(dims), keepdim=True) / count
    scale = (variance + epsilon).rsqrt()
    result = (x - mean) * scale
    result = result * weight if weight is not None else result
    return (result + bias if bias is not None else result), mean, scale


def _batch_norm(func, args, kwargs, record: Record, masks):
    x, weight, bias, *_, epsilon = args
    dims = [d for d in range(x.dim()) if d != 1]
    here = _weights(record, x, masks, dims)
    count = here.sum(dims, keepdim=True)
    mean = (x * here).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * here).sum(dims, keepdim=True) / count
    scale = (variance + epsilon).rsqrt()
    shape = (1, -1) + (1,) * (x.dim() - 2)
    result = (x - mean) * scale
    result = result * weight.reshape(shape) if weight is not None else result
    return (result + bias.reshape(shape) if bias is not None else result), mean.flatten(), scale.flatten()


def _rms_norm(func, args, kwargs, record: Record, masks):
    x, shape, weight, *rest = args
    epsilon = rest[0] if rest and rest[0] is not None else torch.finfo(x.dtype).eps
    dims = range(x.dim() - len(shape), x.dim())
    here = _weights(record, x, masks, dims)
    mean = (x.square() * here).sum(tuple(dims), keepdim=True) / here.sum(tuple(dims), keepdim=True)
    scale = (mean + epsilon).rsqrt()
    return (x * scale * weight if weight is not None else x * scale), scale


def _group_norm(func, args, kwargs, record: Record, masks):
    x, weight, bias, _, _, _, groups, epsilon = args
    here = _weights(record, x, masks, range(1, 2))
    grouped, present = (t.reshape(x.shape[0], groups, -1) for t in (x, here))
    count = present.sum(-1, keepdim=True).clamp_min(1)
    mean = (grouped * present).sum(-1, keepdim=True) / count
    variance = ((grouped - mean).square() * present).sum(-1, keepdim=True) / count
    scale = (variance + epsilon).rsqrt()
    result = ((grouped - mean) * scale).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    result = result * weight.reshape(shape) if weight is not None else result
    return (result + bias.reshape(shape) if bias is not None else result), mean[..., 0], scale[..., 0]


def _weight_norm(func, args, kwargs, record: Record, masks):
    v, g, *rest = args
    dim = rest[0] % v.dim() if rest else 0
    others = [d for d in range(v.dim()) if d != dim]
    norm = v.square().sum(others, keepdim=True).sqrt()
    return torch.where(norm > 0, v * (g / norm), 0), norm


REFERENCES: dict[Any, Any] = {
    **dict.fromkeys(
        [aten.mean, aten.amax, aten.amin, aten.prod, aten.var, aten.std, aten.var_mean, aten.std_mean, aten.logsumexp,
         aten.any, aten.all, aten.aminmax, aten.max, aten.min, aten.median, aten.mode],
        _reduce,
    ),
    aten.native_layer_norm: _layer_norm,
    aten._fused_rms_norm: _rms_norm,
    aten.native_group_norm: _group_norm,
    aten._weight_norm_interface: _weight_norm,
    **dict.fromkeys([aten.native_batch_norm, aten._native_batch_norm_legit, aten._batch_norm_with_update], _batch_norm),
}  # fmt: skip
