"""What a function of the user's is handed: copies, so that whatever it does to them changes neither the network and the
inputs of the caller nor what a search goes on with. What this package brings is handed the things themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxprune.registries import is_foreign
from passes.equality.trees import map_tensors
from passes.stream.network_copies import clone


def lent(receiver: object, network: nn.Module, inputs: object) -> tuple[Any, Any]:
    """A network and its example inputs for `receiver`, a function or an object that is going to run them."""
    return (clone(network), copied(inputs)) if is_foreign(receiver) else (network, inputs)


def copied(inputs: object) -> Any:
    """Inputs with tensors of their own, in whatever they are kept."""
    return map_tensors(_apart, inputs)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
