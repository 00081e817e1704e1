"""A copy of a network, so that running it leaves no trace in the network: programs write into what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from passes.graph.module_copies import evaluate_mode
from passes.process.outside_state import outside_kept
from passes.stream.network_copies import clone


@contextmanager
def apart(network: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode, with tensors and attributes of its own; ties and gradient flags as in `network`.

    What programs write: counters, caches, running means, and parameters as well (an embedding with a greatest norm,
    weights that are clamped before they are used). What hooks keep elsewhere is put back on leaving.
    """
    with outside_kept([network]):
        yield evaluate_mode(clone(network))
