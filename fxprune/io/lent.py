"""What a function of the user's is handed: copies, so that whatever it does to them changes neither the network and the
inputs of the caller nor what a search goes on with. What this package brings is handed the things themselves.

A copy of a network has its gradients, which the user may have accumulated before.
"""

from __future__ import annotations

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
        if self._copy is None or self._state is None or not self._state.is_of(self._copy, self._network):
            self._copy = self._state = None  # so that there are never two of them
            self._copy = with_gradients(self._network)
            self._state = _State(self._copy)
        return self._copy


class _State:
    """What a copy of a network holds, but for the values of its tensors, which the network itself still has."""

    def __init__(self, made: nn.Module) -> None:
        self.objects, self.described = _held(made)

    def is_of(self, made: nn.Module, network: nn.Module) -> bool:
        """Whether the copy is as it was, with the values of the network that it was made of."""
        objects, described = _held(made)
        if len(objects) != len(self.objects) or any(a is not b for a, b in zip(objects, self.objects, strict=True)):
            return False
        if described != self.described:
            return False
        tensors, before = _with_gradients_of(made), _with_gradients_of(network)
        return len(tensors) == len(before) and all(map(_equal, tensors, before))


def _held(network: nn.Module) -> tuple[list[object], list[tuple]]:
    objects: list[object] = []
    for module in network.modules():
        objects += [type(module), module.training]
        for name, value in vars(module).items():
            objects += [name, value]
            if isinstance(value, dict):
                objects += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set):
                objects += value
    tensors = _with_gradients_of(network)
    return [*objects, *tensors], [(t.dtype, t.device, t.shape, t.requires_grad) for t in tensors]


def _with_gradients_of(network: nn.Module) -> list[torch.Tensor]:
    tensors = list(held_tensors(network))
    return tensors + [t.grad for t in tensors if t.is_leaf and t.grad is not None]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Values are compared: neither what is written by ``.data`` nor through NumPy counts as a new version."""
    return one is other or one.shape == other.shape and (one.is_meta or torch.equal(readable(one), readable(other)))


def copied(inputs: object) -> Any:
    """Inputs with tensors of their own, in whatever they are kept."""
    return map_tensors(_apart, inputs)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
