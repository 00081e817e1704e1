"""What each layer costs before and after a search: MACs, parameters, milliseconds where a latency table is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fxprune.resources.models import Resource
from passes import Coupling, cost


@dataclass(frozen=True)
class LayerCosts:
    """One layer before and after. macs, params: of the example inputs' batch.

    ms: milliseconds that a latency table predicts, with what is fused into the layer; None where there is no table.
    """

    name: str
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    ms_before: float | None = None
    ms_after: float | None = None


def layer_costs(
    coupling: Coupling, widths: Mapping[str, int], resources: Iterable[Resource] = ()
) -> tuple[LayerCosts, ...]:
    """Every layer in the order of the run; MACs and parameters add up to those of the networks.

    A resource that can tell its layers apart (a latency table) has a method `by_layer(widths)`, {layer: milliseconds};
    what it names and no multiplication belongs to, such as pooling, comes last.
    """
    counted = cost(coupling).layers
    timed = next((r.by_layer for r in resources if hasattr(r, "by_layer")), None)
    before, after = (timed(None), timed(widths)) if timed is not None else ({}, {})
    found = {
        layer.name: (layer.macs(None), layer.macs(widths), layer.params(None), layer.params(widths))
        for layer in counted
    }
    return tuple(
        LayerCosts(
            name,
            *found.get(name, (0, 0, 0, 0)),
            *((before.get(name, 0.0), after.get(name, 0.0)) if timed is not None else ()),
        )
        for name in {**found, **before}
    )
