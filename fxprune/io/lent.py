"""What a function of the user's is handed: copies, so that whatever it does to them changes neither the network and the
inputs of the caller nor what a search goes on with. What this package brings is handed the things themselves.

A copy of a network has its gradients, which the user may have accumulated before.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from fxprune.registries import is_foreign
from passes.equality.comparison import readable
from passes.equality.trees import map_tensors
from passes.stream.network_copies import clone, held_tensors


def lent(receiver: object, network: nn.Module, inputs: object) -> tuple[Any, Any]:
    """A network and its example inputs for `receiver`, a function or an object that is going to run them."""
    return (with_gradients(network), copied(inputs)) if is_foreign(receiver) else (network, inputs)


def copied(inputs: object) -> Any:
    """Inputs with tensors of their own, in whatever they are kept."""
    return map_tensors(_apart, inputs)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def with_gradients(network: nn.Module) -> nn.Module:
    """A copy of a network and of the gradients of its parameters."""
    made = clone(network)
    own = dict(network.named_parameters())
    for name, parameter in made.named_parameters():
        before = own.get(name)  # a module's own copying may leave some out
        if before is not None and before is not parameter and before.grad is not None:
            parameter.grad = before.grad.detach().clone()
    return made


class Lent:
    """A network for many calls of `receiver`: for one of the user's a copy, and another one once a call has changed it.

    Noticed are values of tensors and gradients, their types and flags, modules, modes, hooks, attributes, and what
    lists and dictionaries among the attributes hold; not what changes deeper inside of an object.
    """

    def __init__(self, receiver: object, network: nn.Module) -> None:
        self._foreign, self._network = is_foreign(receiver), network
        self._copy: nn.Module | None = None
        self._state: _State | None = None

    def network(self) -> nn.Module:
        """What the next call is handed."""
        if not self._foreign:
            return self._network
        if self._copy is None or self._state is None or not self._state.is_as_it_was():
            self._copy = self._state = None  # so that there are never two of them
            self._copy = with_gradients(self._network)
            self._state = _State(self._copy, self._network)
        return self._copy


class _State:
    """What a copy of a network holds, but for the values of its tensors, which the network itself still has."""

    def __init__(self, made: nn.Module, network: nn.Module) -> None:
        self._made, self._objects = made, _objects_of(made)
        tensors, before = list(held_tensors(made)), list(held_tensors(network))
        self._comparable = len(tensors) == len(before)  # not where a module's own copying leaves some out
        self._pairs = list(zip(tensors, before, strict=False))
        self._described = [_described(tensor) for tensor in tensors]

    def is_as_it_was(self) -> bool:
        """Whether the copy holds what it held, with the values of the network that it was made of."""
        objects = _objects_of(self._made)
        return (
            self._comparable
            and len(objects) == len(self._objects)
            and all(map(operator.is_, objects, self._objects))
            and [_described(tensor) for tensor, _ in self._pairs] == self._described
            and all(_equal(one, other) and _equal(_gradient(one), _gradient(other)) for one, other in self._pairs)
        )


def _objects_of(network: nn.Module) -> list[object]:
    found: list[object] = []
    for module in network.modules():
        found += (type(module), module.training)
        for name, value in vars(module).items():
            found += (name, value)
            if isinstance(value, dict):
                found += value.keys()
                found += value.values()
            elif isinstance(value, list | tuple | set):
                found += value
    return found


def _described(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.requires_grad


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.grad if tensor.is_leaf else None


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Values are compared: neither what is written by ``.data`` nor through NumPy counts as a new version."""
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and (one.is_meta or torch.equal(readable(one), readable(other)))
