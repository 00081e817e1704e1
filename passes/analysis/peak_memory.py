"""Peak memory of an eager forward pass as a function of the widths: liveness over the tape of operator calls.

A storage is allocated by the call that makes it, and shared by its views and in-place operators (schemas say so).
What a graph node returns lives until the last node that reads it has run, what a node makes inside only until that node
is done; inputs belong to the caller and live throughout, as parameters and buffers do. Each storage has as many bytes
as the product of its axes, a polynomial in the widths, so the sum after every allocation is one too, and the peak is
their maximum. Not counted: scratch space inside a kernel, and autograd's saved tensors (inference is meant).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from passes.analysis.polynomial import Lengths
from passes.axes.expressions import Axis
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Slot, Value
from passes.ops.storage import shared_operands
from passes.process.torch_private import pytree
from passes.stream.module_run import Lifetimes


@dataclass(frozen=True)
class Storage:
    """A piece of memory: the axes of the tensor that it was made for, and the bytes of one element."""

    axes: tuple[Axis, ...]
    item_bytes: int


@dataclass(frozen=True)
class Liveness:
    """When storages are allocated and freed: `storages[number]`, +1 or -1, in the order in which it happens."""

    storages: tuple[Storage, ...]
    events: tuple[tuple[int, int], ...]


def peak_bytes(costs: Lengths) -> Callable[[np.ndarray], np.ndarray]:
    """The peak as a function of widths, an integer array (groups, ...); used by `Cost.memory`.

    The balance after each allocation is a row of coefficients over all monomials that occur, so that a batch of width
    vectors costs one matrix product (in float64: exact below 2**53). Rows that never are the largest are left out.
    """
    live = liveness(costs)
    terms: dict[tuple[int, ...], int] = {(): 0}
    sizes = [_row(costs, storage.axes, storage.item_bytes, terms) for storage in live.storages]
    resident = [_row(costs, axes, item, terms) for axes, item in resident_tensors(costs)]
    base = sum((_dense(row, len(terms)) for row in resident), np.zeros(len(terms)))
    balances = [base]
    now = base.copy()
    for number, sign in live.events:
        now = now + sign * _dense(sizes[number], len(terms))
        if sign > 0:
            balances.append(now)
    rows = _largest(np.stack(balances))
    degree = max(len(term) for term in terms)
    factors = np.full((len(terms), degree), len(costs.names), dtype=np.int64)  # that number stands for the constant 1
    for term, column in terms.items():
        factors[column, : len(term)] = term

    def evaluate(widths: np.ndarray) -> np.ndarray:
        flat = widths.reshape(len(widths), int(np.prod(widths.shape[1:], dtype=np.int64)))
        padded = np.concatenate([flat, np.ones((1, flat.shape[1]), dtype=np.int64)]).astype(np.float64)
        monomials = np.ones((len(factors), flat.shape[1]))
        for column in factors.T:
            monomials *= padded[column]
        return (rows @ monomials).max(axis=0).astype(np.int64).reshape(widths.shape[1:])

    return evaluate


def _row(costs: Lengths, axes: tuple[Axis, ...], item_bytes: int, terms: dict[tuple[int, ...], int]) -> dict[int, int]:
    """Bytes as {column: coefficient}; monomials that are new get a column in `terms`."""
    polynomial = costs.polynomial(axes)
    return {terms.setdefault(term, len(terms)): item_bytes * value for term, value in polynomial.terms.items()}


def _dense(row: dict[int, int], columns: int) -> np.ndarray:
    found = np.zeros(columns)
    found[list(row)] = list(row.values())
    return found


def _largest(rows: np.ndarray) -> np.ndarray:
    """The rows that no other row exceeds in every coefficient: widths are positive, so the rest cannot be the peak."""
    rows = np.unique(rows, axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1), kind="stable")]
    kept: list[np.ndarray] = []
    for row in rows:
        if not any((other >= row).all() for other in kept):
            kept.append(row)
    return np.stack(kept)


def resident_tensors(costs: Lengths) -> Iterator[tuple[tuple[Axis, ...], int]]:
    """Axes and item size of every parameter and buffer; tied ones once."""
    coupling = costs.coupling
    dtypes = _dtypes(coupling.structure.records)
    for name, axes in coupling.structure.tensors.items():
        if coupling.aliases[name] == name:
            yield axes, dtypes.get(name, torch.get_default_dtype()).itemsize


def liveness(costs: Lengths) -> Liveness:
    """Allocations and releases of all storages of one forward pass."""
    structure = costs.coupling.structure
    walk = _Walk(structure.records, structure.values, structure.vals, frozenset(structure.tensors))
    return walk.run() if structure.lifetimes is None else walk.follow(structure.lifetimes)


class _Walk:
    """Follows the tape once."""

    def __init__(
        self,
        records: Sequence[Record],
        values: Mapping[str, object],
        vals: Mapping[str, object],
        tensors: frozenset[str],
    ) -> None:
        self.records, self.tensors = records, tensors
        self.dtypes = _value_dtypes(records, values, vals)
        self.results = {name: _values(value) for name, value in values.items()}
        self.home: dict[int, int] = {}  # tensor -> storage
        self.given: set[int] = set()  # storages of the graph's inputs
        self.by_token: set[int] = set()  # storages of fused attention, which are laid out (batch, token, head, unit)
        self.storages: list[Storage] = []
        self.events: list[tuple[int, int]] = []
        self.held: set[int] = set()

    def run(self) -> Liveness:
        nodes = list(self.results)
        by_node: dict[str, list[Record]] = {}
        for record in self.records:
            by_node.setdefault(record.node, []).append(record)
        last_use = self._last_uses(nodes, by_node)
        made = {v.key for r in self.records for v in r.outputs}
        for name in nodes:
            if name not in by_node:  # an input of the graph, or a node that only hands values on
                for value in self.results[name]:
                    if value.key not in made and value.label not in self.tensors:
                        self.given.add(self._allocated(value.key, value.axes))
        ends: dict[int, int] = {}  # storage -> place of the node after which it is freed
        for place, name in enumerate(nodes):
            kept = {v.key for v in self.results[name]}
            inside: list[int] = []
            calls = by_node.get(name, ())
            fused = any(call.one_kernel for call in calls)
            for value in self._fused(calls, kept) if fused else self._calls(calls):
                inside.append(value.key)
            for key in inside:
                storage = self.home[key]
                until = last_use.get(key, place) if key in kept else place
                ends[storage] = max(ends.get(storage, place), until)
            for storage in sorted(self.held - self.given):
                if ends.get(storage, place) <= place:
                    self._freed(storage)
        return Liveness(tuple(self.storages), tuple(self.events))

    def follow(self, lifetimes: Lifetimes) -> Liveness:
        """The same for a module, of whose run is known when each tensor was freed."""
        for value in lifetimes.inputs:
            self.given.add(self._allocated(value.key, value.axes))
        freed: dict[int, list[int]] = {}
        for made, key in lifetimes.freed:
            freed.setdefault(made, []).append(key)
        holders: dict[int, set[int]] = {}
        place = 0
        while place < len(self.records):
            stop = self._end_of_attention(place)
            calls = self.records[place:stop]
            fused = stop > place + 1
            for value in self._fused(calls, {calls[-1].outputs[0].key}) if fused else self._calls(calls):
                holders.setdefault(self.home[value.key], set()).add(value.key)
            for made in range(place + 1, stop + 1):
                for key in freed.get(made, ()):
                    storage = self.home.get(key)
                    if storage is not None and key in holders.get(storage, ()):
                        holders[storage].discard(key)
                        if not holders[storage] and storage in self.held - self.given:
                            self._freed(storage)
            place = stop
        return Liveness(tuple(self.storages), tuple(self.events))

    def _end_of_attention(self, place: int) -> int:
        """Where the calls of one attention end, which a device does in one kernel; for other calls the next place."""
        label, stop = self.records[place].node, place + 1
        if self.records[place].one_kernel:
            while stop < len(self.records) and self.records[stop].node == label:
                stop += 1
        return stop

    def _last_uses(self, nodes: Sequence[str], by_node: Mapping[str, Sequence[Record]]) -> dict[int, int]:
        """For each tensor the place of the last node that reads it; what leaves the graph is held to the end."""
        last: dict[int, int] = {}
        for place, name in enumerate(nodes):
            for record in by_node.get(name, ()):
                for value in record.inputs:
                    last[value.key] = place
        for value in self.results.get("output", ()):
            last[value.key] = len(nodes)
        return last

    def _calls(self, records: Iterable[Record]) -> Iterator[Value]:
        """The tensors that calls return, with the storages that they allocate."""
        for record in records:
            shared = shared_operands(record)
            for number, value in enumerate(record.outputs):
                source = shared[number] if number < len(shared) else None
                if value.key in self.home:  # written in place
                    pass
                elif source is not None and source.key in self.home:
                    self.home[value.key] = self.home[source.key]
                elif source is not None and source.label in self.tensors:
                    self._without_memory(value)
                elif (
                    record.func is torch.ops.aten.clone.default and self.home.get(record.inputs[0].key) in self.by_token
                ):
                    self.home[value.key] = self.home[record.inputs[0].key]  # on the device there is nothing to copy
                else:
                    self._allocated(value.key, value.axes)
                yield value

    def _fused(self, records: Sequence[Record], returned: set[int]) -> Iterator[Value]:
        """Attention in one kernel: it allocates its result and, while it runs, a logarithm for each token and head."""
        for value in (v for record in records for v in record.outputs):
            if value.key in returned:
                self.by_token.add(self._allocated(value.key, value.axes))
                self._freed(self._allocated(-1, value.axes[:-1]))
            else:
                self._without_memory(value)
            yield value

    def _without_memory(self, value: Value) -> None:
        """A view of a parameter, or what a fused kernel never writes down."""
        self.home[value.key] = len(self.storages)
        self.storages.append(Storage((), 0))

    def _allocated(self, key: int, axes: tuple[Axis, ...]) -> int:
        self.home[key] = number = len(self.storages)
        self.storages.append(Storage(axes, self.dtypes.get(key, torch.get_default_dtype()).itemsize))
        self.events.append((number, 1))
        self.held.add(number)
        return number

    def _freed(self, storage: int) -> None:
        self.events.append((storage, -1))
        self.held.discard(storage)


def _values(tree: object) -> list[Value]:
    return tree_leaves_only(Value, tree)


def _dtypes(records: Iterable[Record]) -> dict[str, torch.dtype]:
    """The dtypes of parameters and buffers, as the calls that read them found them."""
    return {value.label: slot.dtype for value, slot in _operands(records)}


def _operands(records: Iterable[Record]) -> Iterator[tuple[Value, Slot]]:
    for record in records:
        for slot in pytree.tree_leaves(record.template):
            if isinstance(slot, Slot):
                yield record.inputs[slot.number], slot


def _value_dtypes(
    records: Sequence[Record], values: Mapping[str, object], vals: Mapping[str, object]
) -> dict[int, torch.dtype]:
    """The dtype of each tensor: of the calls that read or make it, else of the node that returns it."""
    found = {value.key: slot.dtype for value, slot in _operands(records)}
    for record in records:
        found.update(zip((value.key for value in record.outputs), record.dtypes, strict=True))
    for name, tree in values.items():
        tensors = tree_leaves_only(torch.Tensor, vals.get(name))
        for value, tensor in zip(_values(tree), tensors, strict=False):
            found.setdefault(value.key, tensor.dtype)
    return found
