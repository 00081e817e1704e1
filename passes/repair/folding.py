"""Batch norms folded into the convolution before them while weights are fitted, and taken out again afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.process.torch_private import children_of

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SMALLEST = 1e-6  # of the largest scale of a norm: below it a row's weight could not be recovered from its product


@dataclass
class Folded:
    """One layer and the norm that was taken into it. scale: of each row of the weight."""

    layer: Any
    norm: Any
    path: str
    scale: Tensor
    bias: Tensor | None


@torch.no_grad()
def fold(gm: fx.GraphModule) -> list[Folded]:
    """Fold each batch norm in eval mode that is read by nothing but follows one layer directly; `gm` is changed."""
    calls: dict[str, int] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    owners: dict[int, int] = {}
    for module in gm.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    done: list[Folded] = []
    for node in gm.graph.nodes:
        if node.op != "call_module" or type(gm.get_submodule(str(node.target))) not in _NORMS:
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer: Any = gm.get_submodule(str(source.target))
        norm: Any = gm.get_submodule(str(node.target))
        once = calls[str(source.target)] == calls[str(node.target)] == 1
        own = all(owners[id(p)] == 1 for p in [*layer.parameters(), *norm.parameters()])
        if type(layer) not in _LAYERS or not once or not own or norm.running_var is None or layer.weight.dtype not in (
            torch.float32, torch.float64,
        ) or (type(layer) is nn.Linear and norm.running_var.numel() != layer.weight.shape[0]):  # fmt: skip
            continue
        gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
        beta = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_var)
        scale = gamma * torch.rsqrt(norm.running_var + norm.eps)
        if norm.bias is None or float(scale.abs().min()) <= _SMALLEST * float(scale.abs().max()):
            continue
        former = layer.bias
        constant = former if former is not None else torch.zeros_like(beta)
        layer.weight.mul_(_along(scale, layer))
        layer.bias = nn.Parameter(beta + scale * (constant - norm.running_mean))
        path, _, name = str(node.target).rpartition(".")
        children_of(gm.get_submodule(path))[name] = nn.Identity()
        done.append(Folded(layer, norm, str(node.target), scale.clone(), former))
    return done


@torch.no_grad()
def unfold(gm: fx.GraphModule, folded: list[Folded]) -> None:
    """Put the norms back: the network computes what it computes folded."""
    for item in folded:
        layer, norm = item.layer, item.norm
        layer.weight.div_(_along(item.scale, layer))
        constant = item.bias if item.bias is not None else torch.zeros_like(item.scale)
        norm.bias.copy_(layer.bias - item.scale * (constant - norm.running_mean))
        layer.bias = item.bias
        path, _, name = item.path.rpartition(".")
        children_of(gm.get_submodule(path))[name] = norm


def _along(scale: Tensor, layer: Any) -> Tensor:
    """`scale`, one a row, in the shape that multiplies the weight."""
    weight: Tensor = layer.weight
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        rows = weight.shape[1]
        grouped = scale.reshape(layer.groups, 1, rows).expand(-1, weight.shape[0] // layer.groups, -1)
        return grouped.reshape(weight.shape[0], rows, *[1] * (weight.dim() - 2))
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
