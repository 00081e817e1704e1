"""The network of a round, from the unpruned one and what a journal keeps."""

from __future__ import annotations

from torch import nn

from fxprune.io.tensors import from_bytes, put_modes, put_tensors
from fxprune.journal.protocol import Journal
from fxprune.journal.records import Round
from fxprune.problem.wrappers import BARE, Wrapping
from passes import Plan, apply_plan
from passes.stream.network_copies import clone


def restore_network(dense: nn.Module, record: Round, journal: Journal) -> nn.Module:
    """The network that a round chose, built anew from the unpruned one, the plan and the stored weights."""
    network = apply_plan(dense, Plan.from_json(record.plan))
    if (weights := journal.weights(record.round)) is not None:
        put_tensors(network, from_bytes(weights))
    return network


def rebuild(
    dense: nn.Module,
    rounds: tuple[Round, ...],
    round: int,
    journal: Journal,
    modes: dict[str, bool],
    wrap: Wrapping = BARE,
) -> nn.Module:
    """A fresh copy of the network after a round, wrapped, in the modes of what was handed in."""
    network = wrap(restore_network(dense, rounds[round - 1], journal) if round else clone(dense))
    put_modes(network, modes)
    return network
