"""A copy of a GraphModule's modules in which every tensor is replaced: on meta, in float64, or sliced.

`copy.deepcopy` asks its memo first; filling the memo with replacements copies the modules, shared and nested ones
included, without ever touching the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn


def owned_tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, buffer and plain tensor attribute below `root` with its qualified name; tied ones repeat."""
    for prefix, module in root.named_modules(remove_duplicate=False):
        plain = {k: v for k, v in module.__dict__.items() if isinstance(v, torch.Tensor)}
        for name, tensor in {**module._parameters, **module._buffers, **plain}.items():
            if tensor is not None:
                yield (f"{prefix}.{name}" if prefix else name), tensor


def shell(gm: nn.Module) -> nn.Module:
    """A plain module with the children, parameters and attributes of `gm`, without its graph and code."""
    plain = nn.Module()
    skip = {"_graph", "_code", "meta", "_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks"}
    plain.__dict__.update({k: v for k, v in gm.__dict__.items() if k not in skip})
    return plain


def copy_with(gm: nn.Module, replace: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """Copy the modules of `gm` with each tensor replaced by ``replace(name, tensor)``; tied tensors stay tied."""
    memo: dict[int, object] = {}
    hollow = shell(gm)
    for name, tensor in owned_tensors(hollow):
        if id(tensor) not in memo:
            memo[id(tensor)] = replace(name, tensor)
    for module in hollow.modules():
        simple = _simple_copy(module, memo)
        if simple is not None:
            memo[id(module)] = simple
    return copy.deepcopy(hollow, memo)


_PLAIN = (int, float, str, bool, type(None), torch.Size, torch.dtype)
_HELD = {"_parameters", "_buffers"}


def _simple_copy(module: nn.Module, memo: dict[int, object]) -> nn.Module | None:
    """A copy of a torch.nn layer that holds settings and tensors alone, faster than deepcopy; else None."""
    if not type(module).__module__.startswith("torch.nn.modules.") or module._modules:
        return None
    attributes = {}
    for name, value in module.__dict__.items():
        if name in _HELD:
            value = {key: None if tensor is None else memo[id(tensor)] for key, tensor in value.items()}
        elif isinstance(value, (dict, set, list)):
            if value and name != "_non_persistent_buffers_set":
                return None
            value = copy.copy(value)
        elif not isinstance(value, _PLAIN) and not (
            isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)
        ):
            return None
        attributes[name] = value
    twin = type(module).__new__(type(module))
    twin.__dict__.update(attributes)
    return twin


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """`data` as a parameter where `tensor` is one, with its `requires_grad`."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad and data.is_floating_point())
    return data
