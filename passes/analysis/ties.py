"""Why axes shrink together: the operators that tie them, as a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from passes.arguments import is_a, quoted
from passes.axes.expressions import Variable, leaves
from passes.errors import PlanError
from passes.ops import Record, Value, spelled

if TYPE_CHECKING:
    import networkx as nx


def ties_of(records: Iterable[Record], variables: Mapping[str, Variable]) -> nx.Graph:
    """Nodes are ``tensor:dim`` of parameters and values, edges the operators that tie them."""
    import networkx as nx  # it takes long to import, and few ask why axes are tied

    graph = nx.Graph()
    grouped = {v: name for name, v in variables.items()}

    def add(value: Value) -> dict[str, set[Variable]]:
        found = {}
        for dim, axis in enumerate(value.axes):
            here = {v for v in leaves(axis) if v in grouped}
            if here:
                key = f"{value.label}:{dim}"
                graph.add_node(key, axis=str(axis), groups=sorted(grouped[v] for v in here))
                found[key] = here
        return found

    for record in records:
        ends: dict[str, set[Variable]] = {}
        for value in (*record.inputs, *record.outputs):
            ends.update(add(value))
        keys = list(ends)
        for number, key in enumerate(keys):
            for other in keys[number + 1 :]:
                if ends[key] & ends[other]:
                    graph.add_edge(key, other, node=record.node, op=spelled(record.func))
    return graph


def why_tied(ties: nx.Graph, first: str, second: str) -> list[str]:
    """The operators on the shortest path between two axes (``"conv1.weight:0"``).

    Raises PlanError where an axis is unknown or they are independent.
    """
    for end in (first, second):
        is_a(end, str, "explain", "an axis, such as 'conv1.weight:0'", PlanError)
        if end not in ties:
            raise PlanError(f"{quoted(end)} is no prunable axis of this network; axes look like 'conv1.weight:0'")
    import networkx as nx

    if not nx.has_path(ties, first, second):
        raise PlanError(f"{first} and {second} are not coupled")
    path = nx.shortest_path(ties, first, second)
    return [
        f"{a} ~ {b} by {ties.edges[a, b]['op']} at {ties.edges[a, b]['node']}"
        for a, b in zip(path, path[1:], strict=False)
    ]
