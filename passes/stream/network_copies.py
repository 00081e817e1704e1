"""Copies of whole networks, with whatever their programs and hooks hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, fx, nn

from passes.graph.annotations import forgetting_proofs
from passes.graph.module_copies import Copies, evaluate_mode
from passes.process.outside_state import outside_kept
from passes.stream.results import tensors_in


def clone(network: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy that shares no tensor with the network but those that are named.

    What a hook computes anew in each forward (the weight of a weight_norm) and torch refuses to copy, because it has
    a history of gradients, is copied as it is now, without that history. Objects that refuse to be copied are shared.
    """
    memo: dict[int, object] = {id(t): t.detach().clone() for t in held_tensors(network) if not t.is_leaf}
    memo.update({id(t): t for t in shared})
    if isinstance(network, fx.GraphModule):
        return copy.deepcopy(network, memo)
    return Copies(network, lambda _, tensor: copy.deepcopy(tensor, memo), memo).module(network)


def copied_network(network: nn.Module) -> nn.Module:
    """A copy for other weights: known by the same plan and coupling, no longer by a proof."""
    return forgetting_proofs(clone(network))


@contextmanager
def apart(network: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode, with tensors and attributes of its own; ties and gradient flags as in `network`.

    What programs write: counters, caches, running means, and parameters as well (an embedding with a greatest norm,
    weights that are clamped before they are used). What hooks keep elsewhere is put back on leaving.
    """
    with outside_kept([network]):
        yield evaluate_mode(clone(network))


def held_tensors(network: nn.Module) -> Iterator[Tensor]:
    """All tensors of the modules: parameters, buffers, attributes, and those that other objects and hooks hold."""
    for module in network.modules():
        held = [v for v in vars(module).values() if v is not None and not (isinstance(v, dict) and not v)]
        yield from tensors_in(held, caches=True)  # without the tables, mostly empty, that every module has
