"""Size attributes of modules, made to agree with tensors that have been sliced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

from passes.process.torch_private import ConvNd, NormBase

# What `resize_module` and `resize_view_module` know: layers with sizes as attributes.
SIZED = (
    *(ConvNd, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
    *(NormBase, nn.PReLU, nn.Embedding, nn.EmbeddingBag),
    *(nn.RNNCellBase, nn.Bilinear, nn.ChannelShuffle, nn.RNNBase, nn.Unflatten),
)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, NormBase)  # those that may have no tensor, and ask for `channels`
COUNTING = (ConvNd, nn.GroupNorm, nn.ChannelShuffle)  # those of them that count groups


# Whether modules of a class are among `SIZED`: to ask for so many classes takes long.
is_sized: Callable[[type], bool] = cache(lambda kind: issubclass(kind, SIZED))


def resize_module(module: object, groups: int | None, num_groups: int | None, channels: int | None) -> None:
    """Make the size attributes of a torch.nn module agree with its (already sliced) tensors.

    groups, num_groups: new counts where an operator's rule gave them. channels: those of the module's input.
    """
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, ConvNd):
        if groups is not None and groups != module.groups:
            module.groups = groups
        first, second = weight.shape[:2]
        second *= module.groups
        into, out = (first, second) if module.transposed else (second, first)
        _set(module, in_channels=into, out_channels=out)
    elif isinstance(module, nn.Linear):
        _set(module, out_features=weight.shape[0], in_features=weight.shape[1])
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if weight is not None:
            module.normalized_shape = tuple(weight.shape)
        elif channels is not None and len(module.normalized_shape) == 1:
            module.normalized_shape = (channels,)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = num_groups if num_groups is not None else module.num_groups
        module.num_channels = weight.shape[0] if weight is not None else channels or module.num_channels
    elif isinstance(module, NormBase):
        mean = weight if weight is not None else module.running_mean
        _set(module, num_features=mean.shape[0] if mean is not None else channels or module.num_features)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.ChannelShuffle):
        module.groups = groups if groups is not None else module.groups
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        into, again = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        module.hidden_size, module.input_size = into.shape[0] // gates, into.shape[1]
        if module.proj_size:
            module.proj_size = again.shape[1]


def _set(module: nn.Module, **sizes: int) -> None:
    """Set attributes that are numbers. Python code of torch sets any attribute of a module, which takes long."""
    attributes = module.__dict__
    if attributes.keys() >= sizes.keys():
        attributes.update(sizes)
    else:
        for name, size in sizes.items():
            setattr(module, name, size)


def resize_view_module(module: nn.Module, before: Sequence[int], after: Sequence[int]) -> None:
    """nn.Unflatten: its sizes are literals of the module; `before` and `after` are input and output shapes."""
    if isinstance(module, nn.Unflatten) and isinstance(module.dim, int):
        dim = module.dim % len(before)
        count = len(module.unflattened_size)
        sizes = list(after[dim : dim + count])
        if prod(sizes) == before[dim]:
            module.unflattened_size = torch.Size(sizes)
