"""Latency as a kind of resource: measured on this device, for the widths that a search can reach."""

from __future__ import annotations

from torch.fx import GraphModule

from fxprune.errors import InputError
from fxprune.latency.measuring import latency_resource
from fxprune.problem.inputs import graph_like
from fxprune.problem.width_grids import grid_of
from fxprune.resources.kinds import Kind, Subject
from fxprune.resources.models import Resource


def make(subject: Subject) -> Resource:
    """The measured latency of a network, with the settings of the table `latency` of the configuration."""
    network, coupling = subject.network, subject.coupling
    if not isinstance(network, GraphModule):
        try:
            network, coupling = graph_like(network, coupling, subject.example_inputs)
        except InputError as error:
            raise InputError(
                "netadapt: a latency table is made of the operators of a graph; pass resources=[...] that needs none. "
                f"Of this network there is none: {error}"
            ) from error
    step, least = grid_of(subject.settings)
    given = {"step": step, "least": least, "progress": subject.progress, **subject.settings.latency}
    return latency_resource(network, coupling, subject.example_inputs, **given)


latency = Kind(make, "ms", format=".3f")
