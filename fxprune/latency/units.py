"""Units: the parts of a graph that a backend runs as one piece, each with a key that any network may share.

A unit is one operator that moves or multiplies data (convolution, matrix product, pooling, concatenation, ...) with the
elementwise operators, normalisations and views behind it. Its key says the operators, their static arguments and all
shapes, with a letter for each size that depends on group widths: `convolution(1,a,56,56; b,a,3,3 -> 1,b,28,28)`. The
values of the letters are the unit's *coordinates*; each is a polynomial in the group widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from passes import Coupling
from passes.analysis.cost_model import Cost, cost
from passes.analysis.polynomial import Compiled, Polynomial, Widths
from passes.axes.expressions import Axis
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Value, traits_of

_WIDTH_ATTRIBUTES = frozenset(
    [
        *("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels", "num_groups"),
        *("normalized_shape", "num_embeddings", "embedding_dim", "hidden_size", "embed_dim", "groups"),
    ]
)
_IDLE_ATTRIBUTES = frozenset(
    [
        *("training", "inplace", "eps", "momentum", "affine", "track_running_stats", "elementwise_affine", "p"),
        *("padding_mode", "transposed", "call_super_init", "dump_patches", "return_indices", "output_padding"),
    ]
)


@dataclass(frozen=True)
class Unit:
    """One piece of a network: its key, the fx nodes in it, and the axes whose lengths are its coordinates.

    name: that of its first node, for people; tables never hold it.
    """

    name: str
    key: str
    nodes: tuple[str, ...]
    coordinates: tuple[Axis, ...]


def units_of(gm: fx.GraphModule, coupling: Coupling) -> tuple[Unit, ...]:
    """Divide the nodes of a coupled graph into units, in the order of their first nodes."""
    records: dict[str, list[Record]] = {}
    for record in coupling.structure.records:
        if record.inputs:  # else it makes a constant, or the empty tensors that batch_norm's decomposition asks for
            records.setdefault(record.node, []).append(record)
    home: dict[str, int] = {}
    parts: list[list[fx.Node]] = []
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        producers = [home[source.name] for source in node.all_input_nodes if source.name in home]
        idle = node.name not in records  # dropout in evaluation, a getitem, a size
        if producers and (idle or not _heavy(records[node.name])):
            home[node.name] = max(producers)
            parts[max(producers)].append(node)
        elif not idle:
            home[node.name] = len(parts)
            parts.append([node])
    costs = cost(coupling)
    return tuple(_unit(gm, part, records, costs) for part in parts)


def _heavy(records: Sequence[Record]) -> bool:
    return any(record.macs or not _light(record) for record in records)


def _light(record: Record) -> bool:
    return torch.Tag.pointwise in record.func.tags or traits_of(record.func).fuses


def _short(record: Record) -> str:
    return record.func.overloadpacket.__name__


def _unit(gm: fx.GraphModule, part: Sequence[fx.Node], records: Mapping[str, list[Record]], costs: Cost) -> Unit:
    letters: dict[tuple, tuple[str, Axis]] = {}

    def size(axis: Axis) -> str:
        terms = costs.length(axis).terms
        if set(terms) <= {()}:
            return str(terms.get((), 0))
        known = tuple(sorted(terms.items()))
        if known not in letters:
            letters[known] = (_letter(len(letters)), axis)
        return letters[known][0]

    def shapes(values: Sequence[Value]) -> str:
        return "; ".join(",".join(size(a) for a in v.axes) for v in values)

    pieces = []
    for node in part:
        for record in records.get(node.name, ()):
            name = _short(record).rstrip("_")
            if name == "cat":  # what it costs is what it writes; its inputs would be as many coordinates
                pieces.append(f"cat of {len(record.inputs)}( -> {shapes(record.outputs[:1])})")
            elif _light(record):
                others = [v for v in record.inputs[1:] if len(v.axes) > 1]
                pieces.append(f"{name}({shapes(others)})" if others else name)
            else:
                pieces.append(f"{name}({shapes(record.inputs)} -> {shapes(record.outputs[:1])})")
        static = _static(gm, node) if _heavy(records.get(node.name, ())) else ""
        pieces += [f"[{static}]"] if static else []
    dtype = next((str(v.dtype) for v in tree_leaves_only(torch.Tensor, part[0].meta.get("val"))), "")
    key = " ".join([*pieces, dtype.removeprefix("torch.")])
    return Unit(part[0].name, key, tuple(n.name for n in part), tuple(axis for _, axis in letters.values()))


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index}"


def _static(gm: fx.GraphModule, node: fx.Node) -> str:
    """The arguments that shapes do not tell: stride, padding, dilation, kernel, kind of grouping."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        kept = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in _WIDTH_ATTRIBUTES | _IDLE_ATTRIBUTES and _plain(value)
        }
        groups = getattr(module, "groups", 1)
        if groups != 1:
            kept["groups"] = "each channel" if groups == getattr(module, "in_channels", None) else "some"
        return ", ".join(f"{name}={value}" for name, value in sorted(kept.items()))
    plain = [value for value in node.args[1:] if _plain(value)]
    return ", ".join([*map(str, plain), *(f"{k}={v}" for k, v in sorted(node.kwargs.items()) if _plain(v))])


def _plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(item) for item in value)
    return isinstance(value, (int, float, str, bool))


class Coordinates:
    """The coordinates of every unit as functions of the group widths, evaluated together."""

    def __init__(self, coupling: Coupling, units: Sequence[Unit]) -> None:
        self._costs = cost(coupling)
        self._blocks = [_blocks_of(unit, self._costs) for unit in units]
        self._polynomials: list[Callable[[np.ndarray], np.ndarray]] = []
        numbers: dict[tuple, int] = {}
        self._of_unit: list[list[int]] = []
        for unit in units:
            mine = []
            for axis in unit.coordinates:
                polynomial = self._costs.length(axis)
                key = tuple(sorted(polynomial.terms.items()))
                if key not in numbers:
                    numbers[key] = len(self._polynomials)
                    self._polynomials.append(_compiled(polynomial, len(self._costs.names)))
                mine.append(numbers[key])
            self._of_unit.append(mine)

    def at(self, widths: Widths | None) -> tuple[list[np.ndarray], bool]:
        """For each unit an integer array (points, coordinates), and whether `widths` was one point of scalars."""
        vector, scalar = self._costs.vector(widths)
        flat = vector.reshape(len(vector), -1) if len(vector) else np.zeros((0, 1), dtype=np.int64)
        values = [np.broadcast_to(p(flat), flat.shape[1:]) for p in self._polynomials]
        empty = np.zeros((flat.shape[1], 0), dtype=np.int64)
        return [np.stack([values[n] for n in mine], axis=1) if mine else empty for mine in self._of_unit], scalar

    def present(self, widths: Widths | None) -> list[np.ndarray | None]:
        """For each unit an integer array (points,), 0 where it went with a residual block; None if it never does."""
        vector, _ = self._costs.vector(widths)
        flat = vector.reshape(len(vector), -1)
        return [flat[rows].min(axis=0) if rows else None for rows in self._blocks]

    def shape(self, widths: Widths | None) -> tuple[int, ...]:
        """The shape of the result for these widths."""
        return self._costs.vector(widths)[0].shape[1:]


def _blocks_of(unit: Unit, costs: Cost) -> list[int]:
    """The rows of the residual blocks in whose branch the first operator of a unit is, with which it goes."""
    coupling = costs.coupling
    mine = {number for number, record in enumerate(coupling.structure.records) if record.node == unit.nodes[0]}
    return [costs.names.index(name) for name, block in coupling.blocks.items() if mine and mine <= block.calls]


def _compiled(polynomial: Polynomial, groups: int) -> Callable[[np.ndarray], np.ndarray]:
    only = next(iter(polynomial.terms.items())) if len(polynomial.terms) == 1 else ((), 0)
    if len(only[0]) == 1 and only[1] == 1:  # a single width, as most are
        number = only[0][0]
        return lambda widths: widths[number]
    return Compiled(polynomial, groups)


def extract(gm: fx.GraphModule, nodes: Sequence[str], example_inputs: Sequence[object]) -> tuple[fx.GraphModule, tuple]:
    """A unit of `gm` as a network of its own, with random inputs of the right shapes, the same ones each time.

    Its outputs are the values that the rest of the graph uses.
    """
    inside = set(nodes)
    generator = torch.Generator().manual_seed(0)  # the caller's random state is not its own
    shapes = _shapes(gm, example_inputs)
    graph, inputs = fx.Graph(), []
    copied: dict[fx.Node, fx.Node] = {}
    chosen = [node for node in gm.graph.nodes if node.name in inside]
    for node in _needed(chosen, inside):
        value = shapes[node.name]
        if node.op == "get_attr" or not isinstance(value, torch.Tensor):
            copied[node] = graph.node_copy(node, lambda n: copied[n])
        else:
            copied[node] = graph.placeholder(node.name)
            inputs.append(_random(value, generator))
    for node in chosen:
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    leaving = [n for n in chosen if any(user.name not in inside for user in n.users)] or chosen[-1:]
    graph.output(tuple(copied[n] for n in leaving))
    return fx.GraphModule(gm, graph), tuple(inputs)


def _needed(chosen: Sequence[fx.Node], inside: set[str]) -> Iterator[fx.Node]:
    """What the chosen nodes read from outside, in order; sizes and the like with all that they are made of."""
    seen: set[fx.Node] = set()

    def visit(node: fx.Node) -> Iterator[fx.Node]:
        if node in seen or node.name in inside:
            return
        seen.add(node)
        if node.op not in ("placeholder", "get_attr") and not isinstance(node.meta.get("val"), torch.Tensor):
            for source in node.all_input_nodes:
                yield from visit(source)
        yield node

    for node in chosen:
        for source in node.all_input_nodes:
            yield from visit(source)


def _shapes(gm: fx.GraphModule, example_inputs: Sequence[object]) -> dict[str, object]:
    """Every node's value on the meta device."""
    if not all("val" in node.meta for node in gm.graph.nodes if node.op != "output"):
        from passes import couple

        couple(gm, tuple(example_inputs))
    return {node.name: node.meta.get("val") for node in gm.graph.nodes}


def _random(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if value.dtype.is_floating_point:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return torch.zeros(value.shape, dtype=value.dtype)
