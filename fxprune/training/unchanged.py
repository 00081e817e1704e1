"""A network as it was: what a function that only scores does to it is put back, and training can go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.io.tensors import put_tensors, tensors_of
from passes.graph.module_copies import PLAIN, owned_tensors
from passes.process.torch_private import HOOK_TABLES, storage_id

_HELD = ("_parameters", "_buffers", "_modules", *HOOK_TABLES)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, a function may do to the network what it wants; gives copies of its tensors as they were.

    Put back are values, types and gradient flags of tensors, modules and their classes, hooks, modes, plain attributes
    and a forward of a module's own. Wrappers that keep books of their calls are to be taken off before.
    """
    modules = [_Module(module) for module in network.modules() if not isinstance(module, torch.jit.ScriptModule)]
    own = {id(tensor): tensor for _, tensor in owned_tensors(network)}.values()
    tensors = [(tensor, tensor.detach(), tensor.requires_grad) for tensor in own]
    state = tensors_of(network)
    try:
        yield state
    finally:
        for module in modules:
            module.put_back()
        for tensor, data, trained in tensors:
            if (tensor.dtype, tensor.device, tensor.shape) != (data.dtype, data.device, data.shape) or (
                storage_id(tensor) != storage_id(data)
            ):
                tensor.data = data
            if tensor.is_leaf and tensor.requires_grad != trained:
                tensor.requires_grad_(trained)
        put_tensors(network, state)


class _Module:
    """One module's class, attributes and what it holds by name."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.attributes = _attributes(module)
        self.held = {name: dict(vars(module)[name]) for name in _HELD if name in vars(module)}

    def put_back(self) -> None:
        kept = vars(self.module)
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        for name in _attributes(self.module).keys() - self.attributes.keys():
            del kept[name]
        kept.update(self.attributes)
        for name, held in self.held.items():
            now: dict[str, Any] = kept[name]
            if list(now) != list(held) or any(now[key] is not item for key, item in held.items()):
                now.clear()
                now.update(held)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a program may have set: numbers, texts and the like, the mode, and a forward of the module's own."""
    return {
        name: value
        for name, value in vars(module).items()
        if name == "forward" or type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value)))
    }
