"""A judge that belongs to no pruner: which elements of each parameter survived, and the network with zeros elsewhere.

A pruner is run on a copy of the network whose every element holds its own position. What it leaves of that copy says
which elements survived and in what order, however the pruner works. The masked network is the dense one with all
other elements at zero, and layer normalisation, which would see the zeros, taken over the surviving positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Survivors = Mapping[str, Tensor]


@torch.no_grad()
def prune_by_position(dense: nn.Module, prune: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Survivors]:
    """What `prune` makes of `dense`, and for each floating point tensor the positions that it kept, in its new shape.

    `prune` may change the module that it is given or return another; names in the state_dict have to stay.
    """
    numbered = copy.deepcopy(dense)
    original = {name: tensor for name, tensor in dense.state_dict().items() if tensor.is_floating_point()}
    for name, tensor in numbered.state_dict().items():
        if name in original:
            tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape))
    with torch.enable_grad():
        pruned = prune(numbered)
    survivors = {}
    for name, tensor in pruned.state_dict().items():
        if name in original:
            survivors[name] = tensor.round().long()
            tensor.copy_(original[name].flatten()[survivors[name]])
    return pruned, survivors


@torch.no_grad()
def masked(dense: nn.Module, survivors: Survivors) -> nn.Module:
    """A copy of `dense` with every element at zero that is not among the survivors."""
    result = copy.deepcopy(dense)
    for name, tensor in result.state_dict().items():
        if name in survivors and survivors[name].numel() < tensor.numel():
            kept = tensor.flatten()[survivors[name]]
            tensor.zero_().view(-1)[survivors[name].flatten()] = kept.flatten()
    return result


class _NormOverSurvivors(TorchFunctionMode):
    """Layer normalisation over the positions that its weight keeps; the others come out as zero."""

    def __init__(self, alive: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.alive = alive

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.layer_norm:
            return func(*args, **kwargs)
        bound = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
        inputs, weight, bias = bound["input"], bound.get("weight"), bound.get("bias")
        alive = self.alive.get(id(weight))
        if alive is None:
            return func(*args, **kwargs)
        here = [t[..., alive] if t is not None else None for t in (weight, bias)]
        result = torch.zeros_like(inputs)
        result[..., alive] = F.layer_norm(inputs[..., alive], (len(alive),), *here, bound.get("eps", 1e-5))
        return result


@contextmanager
def norms_over_survivors(zeroed: nn.Module, gone: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, layer norms of `zeroed` leave out the positions ``gone[name]`` of their weight of that name."""
    alive = {}
    for name, parameter in zeroed.named_parameters():
        if name in gone and parameter.dim() == 1:
            there = torch.ones(len(parameter), dtype=torch.bool)
            there[gone[name]] = False
            alive[id(parameter)] = there.nonzero().flatten()
    with _NormOverSurvivors(alive):
        yield


@torch.no_grad()
def error(dense: nn.Module, pruned: nn.Module, survivors: Survivors, inputs: Tensor) -> float:
    """The largest difference between `pruned` and the masked network over the largest magnitude of that output."""
    zeroed = masked(dense, survivors)
    gone = {}
    for name, parameter in zeroed.named_parameters():
        if name in survivors and survivors[name].numel() < parameter.numel() and parameter.dim() == 1:
            there = torch.ones(len(parameter), dtype=torch.bool)
            there[survivors[name]] = False
            gone[name] = there.nonzero().flatten()
    with norms_over_survivors(zeroed, gone):
        expected = zeroed.eval()(inputs)
    return difference(expected, pruned.eval()(inputs))


def difference(expected: Any, got: Any) -> float:
    """The largest difference of an output over its largest magnitude; infinite where shapes differ."""
    first, second = tensors(expected), tensors(got)
    if [t.shape for t in first] != [t.shape for t in second]:
        return float("inf")
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in zip(first, second, strict=True))


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of nested outputs, in order."""
    tree = dict(tree) if isinstance(tree, Mapping) else tree
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
