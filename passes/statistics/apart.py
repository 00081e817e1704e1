"""A copy of a network, so that running it leaves no trace in the network: programs write into what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, fx, nn

from passes.graph.module_copies import copy_module, evaluate_mode
from passes.graph.shared_weights import sharing_weights
from passes.process.hook_state import hooks_kept


@contextmanager
def apart(network: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode, with tensors and attributes of its own; ties and gradient flags as in `network`.

    What programs write: counters, caches, running means, and parameters as well (an embedding with a greatest norm,
    weights that are clamped before they are used). What hooks keep elsewhere is put back on leaving.
    """
    with hooks_kept([network]):
        yield _copy(network)


def _copy(network: nn.Module) -> nn.Module:
    made: dict[int, Tensor] = {}

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            copied = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
        return made[id(tensor)]

    if not isinstance(network, fx.GraphModule):
        return copy_module(network, lambda _, tensor: own(tensor)).eval()
    doubled = sharing_weights(network)  # its class and its code hold no state
    for module in doubled.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, own(tensor))
    return evaluate_mode(doubled)
