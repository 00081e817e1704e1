"""Operators that move over space: pooling, resampling, padding by copies. Leading axes are carried."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from passes.axes.expressions import Axis, Constant, nest
from passes.ops.call import MOVED, Call, aten
from passes.ops.meta_shapes import Shape, made, plain, shaped, windows
from passes.ops.table import Rule, rule, states
from passes.ops.zeros import CARRIED, FIRST, NEVER, taken


def spatial(dimensions: int) -> Rule:
    """The rule of an operator that treats the last `dimensions` dimensions as space."""

    def apply(call: Call) -> list[list[Axis]]:
        axes = call.axes(call.tensors[0])
        call.freeze(axes[-dimensions:], MOVED)
        return [axes[:-dimensions] + call.fixed(n)[-dimensions:] for n in range(len(call.outputs))]

    apply.__name__ = f"spatial{dimensions}"
    return apply


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
    space = windows(x.shape[-2:], kernel, stride, padding, dilation, ceil_mode)
    return None if space is None else (*x.shape[:-2], *space)


def _pooled_with_places(x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    found = _pooled(x, *args) if x.is_contiguous() else None
    return None if found is None else (made(x, found), torch.empty(found, dtype=torch.int64, device="meta"))


def _averaged(
    x: torch.Tensor, kernel: Shape, stride: Shape = (), padding: Shape = (0,), ceil_mode: bool = False, *more: Any
) -> Shape | None:  # fmt: skip
    return None if more[1:] else _pooled(x, kernel, stride, padding, (1,), ceil_mode)  # torch looks at a divisor


def _adaptive(x: torch.Tensor, size: Shape) -> Shape | None:
    return (*x.shape[:-2], *size) if x.dim() in (3, 4) and x.numel() and len(size) == 2 else None


_NAMES = {
    1: "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d reflection_pad1d replication_pad1d",
    2: "avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_max_pool2d max_unpool2d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "reflection_pad2d replication_pad2d",
    3: "avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_max_pool3d max_unpool3d upsample_nearest3d "
    "upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d",
}
for _dimensions, _names in _NAMES.items():
    rule(*(getattr(aten, name) for name in _names.split() if hasattr(aten, name)), zeros=FIRST)(spatial(_dimensions))
states(aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, sizeless=True)
states(aten.max_pool2d_with_indices, meta=plain(_pooled_with_places))
states(aten.avg_pool2d, meta=shaped(_averaged))
states(aten._adaptive_avg_pool2d, meta=shaped(_adaptive))


@rule(aten.im2col, zeros=CARRIED)
def im2col(call: Call) -> list[list[Axis]]:
    """Windows laid out beside their channels: c h w -> (c k) places."""
    *lead, channels, height, width = call.axes("self")
    call.freeze([height, width], "windows slide over this axis")
    return [[*lead, nest([channels, Constant(prod(call["kernel_size"]))]), *call.fixed()[-1:]]]


@rule(aten.col2im, zeros=CARRIED)
def col2im(call: Call) -> list[list[Axis]]:
    """Windows put back and added up: (c k) places -> c h w."""
    *lead, channels, places = call.axes("self")
    channels, inner = call.factor(channels, prod(call["kernel_size"]))
    call.freeze([inner, places], "windows are added up over this axis")
    return [[*lead, channels, *call.fixed()[-2:]]]


@rule(aten.affine_grid_generator, zeros=NEVER)
def affine_grid(call: Call) -> list[list[Axis]]:
    """Places to read from, computed from a matrix for each image."""
    batch, *matrix = call.axes("theta")
    call.freeze(matrix, "places to read from are computed from these numbers")
    return [[batch, *call.fixed()[1:]]]


@rule(aten.grid_sampler_2d, aten.grid_sampler_3d, zeros=taken("input"))
def grid_sampler(call: Call) -> list[list[Axis]]:
    """Channels are carried; where they are read is computed from the grid."""
    batch, channels, *space = call.axes("input")
    grid = call.axes("grid")
    call.freeze([*space, *grid[1:]], "values are read at computed places")
    return [[call.tie(batch, grid[0]), channels, *call.fixed()[2:]]]
