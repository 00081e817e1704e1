"""A dense graph and its pruned form, cut at the same places into short stretches with as little as possible between."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from passes.process.torch_private import placed_first, pytree, schema_of

FEWEST, MOST = 2, 8  # weights in one segment: two can be fitted together, more than eight take long


@dataclass(frozen=True)
class Segment:
    """A stretch of a graph as a module: from values that were made before, by name, to those that are used after."""

    module: fx.GraphModule
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    nodes: tuple[str, ...]

    def run(self, known: dict[str, object]) -> dict[str, Any]:
        """What it gives, by name, from `known` values."""
        results = self.module(*[known[name] for name in self.takes])
        return dict(zip(self.gives, results, strict=True))


def with_results_named(gm: fx.GraphModule) -> fx.GraphModule:
    """`gm` over the same weights, in which what reads a value after an in-place operator reads that operator's result.

    It is the same tensor. A segment works on copies of what it takes, so that only results go on to the next.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        written = written_by(gm, node)
        if written is not None and _gives_it_back(node):
            for user in [user for user in written.users if place[user] > place[node]]:
                user.replace_input_with(written, node)
    return fx.GraphModule(gm, graph)


def written_by(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The value that a node changes in place, if it is an in-place operator."""
    target: Any = node.target
    place = 0
    if node.op == "call_module":
        writes = getattr(gm.get_submodule(str(target)), "inplace", False) is True
    elif node.op == "call_method":
        writes = str(target).endswith("_") and not str(target).endswith("__")
    elif node.op == "call_function" and (schema := schema_of(target)) is not None:
        written = [n for n, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        writes, place = bool(written), (written or [0])[0]
    elif node.op == "call_function":
        name = getattr(target, "__name__", "")
        of_torch = target in (getattr(torch, name, None), getattr(nn.functional, name, None))
        writes = target in _IN_PLACE or (of_torch and (name.endswith("_") or _stated(node, "inplace") is True))
    else:
        return None
    found = node.args[place] if writes and place < len(node.args) else None
    return found if isinstance(found, fx.Node) else None


def _gives_it_back(node: fx.Node) -> bool:
    """Whether an in-place operator returns what it has changed; ``value[...] = ...`` returns nothing."""
    schema = schema_of(node.target) if node.op == "call_function" else None
    return node.target is not operator.setitem and (
        schema is None or any(result.alias_info is not None for result in schema.returns)
    )


_IN_PLACE = frozenset(
    {operator.setitem, *(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow"))}
)


def _stated(node: fx.Node, name: str) -> object:
    """An argument of a call of a Python function, by its name; None where it is left out."""
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature
        return node.kwargs.get(name)


def cuts(
    dense: fx.GraphModule, pruned: fx.GraphModule, weighted: Iterable[str], tensors: Collection[str]
) -> list[str]:  # fmt: skip
    """The nodes after which both graphs are cut.

    weighted: the nodes of `pruned` that hold a weight to be fitted. tensors: those that give one tensor. A cut is where
    the same values are used later in both graphs, and few of them.
    """
    mine, theirs, held = _uses(dense), _uses(pruned), _open_writes(pruned)
    weights = set(weighted)
    chosen: list[str] = []
    found, open_since = 0, list[tuple[int, int, str]]()
    for position, node in enumerate(pruned.graph.nodes):
        if node.op == "output":
            break
        found += node.name in weights
        if node.name not in mine or mine[node.name] != theirs[node.name]:
            continue
        if node.op == "get_attr" or node.name in held or node.name not in tensors:
            continue  # a parameter is read where it is used, and ends nothing
        live = len(theirs[node.name])
        if found < FEWEST:
            continue
        open_since.append((live, -position, node.name))
        if live == 1:
            chosen.append(node.name)
        elif found >= MOST:
            chosen.append(min(open_since)[2])
        else:
            continue
        later = _after(pruned, chosen[-1], node.name)
        found, open_since = sum(name in weights for name in later), []
    return chosen


def _after(gm: fx.GraphModule, first: str, last: str) -> list[str]:
    names = [n.name for n in gm.graph.nodes]
    return names[names.index(first) + 1 : names.index(last) + 1]


def _uses(gm: fx.GraphModule) -> dict[str, frozenset[str]]:
    """For each node the values that are made at or before it and used after it, inputs and attributes left out."""
    nodes = list(gm.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    return {
        node.name: frozenset(
            n.name for n in nodes[: number + 1] if n.op not in ("placeholder", "get_attr") and last[n] > number
        )
        for number, node in enumerate(nodes)
    }


def _open_writes(gm: fx.GraphModule) -> set[str]:
    """The nodes between a value and the last operator that changes it and does not return it."""
    nodes = list(gm.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    found: set[str] = set()
    for node in nodes:
        written = written_by(gm, node)
        if written is not None and not _gives_it_back(node) and written.op != "get_attr":
            found.update(n.name for n in nodes[place[written] : place[node]])
    return found


def segments(gm: fx.GraphModule, ends: Sequence[str], extra: Iterable[str] = ()) -> list[Segment]:
    """`gm` cut after each node of `ends`; what follows the last one, the output included, is the last segment.

    Each reads the parameters that it uses, wherever the graph names them (an exported one names all at its beginning).
    extra: nodes whose values are given as well by the segment that makes them.
    """
    nodes = [n for n in gm.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    result = next(n for n in gm.graph.nodes if n.op == "output")
    stretches: list[list[fx.Node]] = [[]]
    remaining = list(ends)
    for node in nodes:
        stretches[-1].append(node)
        if remaining and node.name == remaining[0]:
            remaining.pop(0)
            stretches.append([])
    made = []
    wanted = set(extra)
    for number, stretch in enumerate(stretches):
        here = set(stretch)
        last = number == len(stretches) - 1
        leaves = [n for n in stretch if any(u not in here and not (last and u is result) for u in n.users)]
        gives = [n for n in stretch if n.name in wanted or n in leaves]
        made.append(_segment(gm, stretch, gives, result if last else None))
    return made


OUTPUT = "__output__"


def _copied(value: object) -> object:
    """A value that may be changed in place: other batches, rounds and derivatives start from the same one."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, value)


def _segment(gm: fx.GraphModule, stretch: list[fx.Node], gives: list[fx.Node], result: fx.Node | None) -> Segment:
    here, graph = set(stretch), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    takes: list[fx.Node] = []
    users = [*stretch, *([result] if result is not None else [])]
    for node in users:
        for source in node.all_input_nodes:
            if source not in here and source not in copies:
                if source.op == "get_attr":
                    copies[source] = graph.node_copy(source)
                else:
                    copies[source] = graph.placeholder(source.name)
                    takes.append(source)
    # placeholders come first in a graph
    ordered = [copies[n] for n in takes]
    for node in reversed(ordered):
        placed_first(graph, node)
    if any(written_by(gm, node) is not None for node in stretch):
        for source in takes:
            copies[source] = graph.call_function(_copied, (copies[source],))
    for node in stretch:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    names = [n.name for n in gives]
    values: list[Any] = [copies[n] for n in gives]
    if result is not None:
        names.append(OUTPUT)
        values.append(fx.map_arg(result.args[0], lambda n: copies[n]))
    graph.output(tuple(values))
    module = fx.GraphModule(gm, graph)
    return Segment(module, tuple(n.name for n in takes), tuple(names), tuple(n.name for n in stretch))


def clamped(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float, float] | None:
    """Where `node` only clamps one value (ReLU, ReLU6, hardtanh): that value and the bounds; else None."""
    bounds: tuple[float, float] | None = None
    if node.op == "call_module":
        module: Any = gm.get_submodule(str(node.target))
        if type(module) is nn.ReLU:
            bounds = (0.0, float("inf"))
        elif type(module) in (nn.ReLU6, nn.Hardtanh):
            bounds = (float(module.min_val), float(module.max_val))
    elif node.target in (torch.relu, torch.relu_, nn.functional.relu, "relu", "relu_"):
        bounds = (0.0, float("inf"))
    elif node.target is nn.functional.relu6:
        bounds = (0.0, 6.0)
    elif node.target in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
        bounds = (0.0, float("inf"))
    sources = node.all_input_nodes
    return (sources[0], *bounds) if bounds is not None and len(sources) == 1 else None
