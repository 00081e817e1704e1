"""A second module over the weights of a network, so that running it leaves no trace in the network."""

from __future__ import annotations

from torch import fx, nn

from passes.graph.module_copies import copy_module, evaluate_mode
from passes.graph.shared_weights import sharing_weights


def apart(network: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the parameters of `network`, and nothing that a run may write.

    Buffers and attributes are its own: counters, caches, states that a program hands from call to call.
    """
    if isinstance(network, fx.GraphModule):  # its class and its code hold no state
        made = sharing_weights(network)
        for module in made.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.clone())
        return evaluate_mode(made)
    copied = copy_module(network, lambda _, t: t if isinstance(t, nn.Parameter) else t.detach().clone())
    return copied.eval()
