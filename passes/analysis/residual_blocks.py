"""Residual branches: ``x + f(x)``, where nothing but that sum reads what `f` makes, so that `f` can go as a whole.

Without its branch the sum is its other addend, exactly what it is where the output of the branch is masked to zero. A
branch is what the addition dominates: on every way from its calls to an output lies that one operand of that one
addition (immediate dominators: Cooper, Harvey and Kennedy, 2001, as in networkx).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from passes.axes.expressions import Axis, Reason
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Slot, Value
from passes.ops.storage import shared_operands, written_operands
from passes.stream.skipped_branches import Detached

aten = torch.ops.aten
_ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor})
PREFIX = "block:"  # sets the names of blocks apart from those of groups
_OUTPUT = "output"


@dataclass(frozen=True)
class Block:
    """A residual branch that can be removed.

    sum: the number, on the tape, of the addition that it ends in. operand: the addend that is the branch, 0 or 1.
    calls: the numbers of the calls that are made for it alone. tensors: the parameters and buffers that only these
    read. taken: how it is taken out of a module.
    """

    name: str
    sum: int
    operand: int
    calls: frozenset[int]
    tensors: tuple[str, ...]
    taken: tuple[Detached, ...] = ()

    def __repr__(self) -> str:
        return f"Block({self.name!r}, calls={len(self.calls)}, tensors={len(self.tensors)})"


@dataclass(frozen=True)
class Blocks:
    """The residual branches of a network: those that can be removed by name, and why others cannot."""

    offered: Mapping[str, Block]
    refused: Mapping[str, Reason]


NO_BLOCKS = Blocks({}, {})
"""Of a network whose residual branches were not looked for."""


def addends(record: Record, operand: int) -> tuple[Value, Value]:
    """Of an addition the branch and the other addend."""
    return record.inputs[operand], record.inputs[1 - operand]


def find_blocks(
    records: Sequence[Record], outputs: Iterable[int], tensors: Mapping[str, tuple[Axis, ...]],
    aliases: Mapping[str, str], trainable: frozenset[str],
) -> Blocks:  # fmt: skip
    """The residual branches on a tape. outputs: the keys of what the network returns."""
    flow = _Flow(records, frozenset(outputs))
    found: list[tuple[int, int, frozenset[int]]] = []
    refused: list[tuple[frozenset[int], Reason]] = []
    sums = {number: record for number, record in enumerate(records) if _adds(record)}
    for (number, operand), calls in sorted(flow.branches(sums).items()):
        if not any(records[call].macs for call in calls):
            continue
        shared = trainable & _read_by(records, calls) & _read_by(records, set(range(len(records))) - calls)
        why = _not_residual(records, flow, number, operand, calls)
        if not why and shared:
            why = f"{min(shared)} is used elsewhere too"
        if why:
            refused.append((calls, Reason(why, records[number].node, "add")))
        else:
            found.append((number, operand, calls))
    offered = {}
    names = _names(records, [*(calls for *_, calls in found), *(calls for calls, _ in refused)])
    for name, (number, operand, calls) in zip(names, found, strict=False):
        mine = _owned(tensors, aliases, _read_by(records, calls), _read_by(records, set(range(len(records))) - calls))
        offered[name] = Block(name, number, operand, calls, mine)
    return Blocks(offered, dict(zip(names[len(found) :], (why for _, why in refused), strict=True)))


def _owned(tensors: Iterable[str], aliases: Mapping[str, str], read: set[str], elsewhere: set[str]) -> tuple[str, ...]:
    """The tensors that go with a branch: what it alone reads, and what else is unread in modules that only it reads."""
    mine, others = ({name.rpartition(".")[0] for name in names} for names in (read - elsewhere, elsewhere))
    return tuple(
        name
        for name in tensors
        if aliases[name] == name
        and name not in elsewhere
        and (name in read or (path := name.rpartition(".")[0]) in mine and path not in others)
    )


def _adds(record: Record) -> bool:
    """Whether a call is the plain sum of two tensors of one shape and type, the second as it is."""
    if record.func not in _ADDITIONS or len(record.inputs) != 2 or record.argument("alpha") != 1:
        return False
    shapes = {tuple(axis.size for axis in value.axes) for value in (*record.inputs, *record.outputs)}
    dtypes = {leaf.dtype for leaf in tree_leaves_only(Slot, record.template)}
    return len(shapes) == 1 and dtypes == set(record.dtypes)


def _read_by(records: Sequence[Record], calls: Iterable[int]) -> set[str]:
    return {name for call in calls for value in records[call].inputs for name in value.parameters}


def _not_residual(records: Sequence[Record], flow: _Flow, number: int, operand: int, calls: frozenset[int]) -> str:
    """Why the branch of an addition cannot be removed; "" where it can."""
    _, other = addends(records[number], operand)
    if not flow.come_of(calls, flow.stream(other.key, number)):
        return (
            "what this sum alone reads does not come of its other addend: the skip is no identity, or the branch is "
            "read elsewhere too"
        )
    return flow.written_over(number, operand, calls)


class _Flow:
    """Which calls need which: through operands, through views of one storage, and through what is written in place."""

    def __init__(self, records: Sequence[Record], outputs: frozenset[int]) -> None:
        self.records, self.outputs = records, outputs
        self.home: dict[int, int] = {}  # by key of a tensor: of the first tensor with its storage
        self.outside: set[int] = set()  # storages that the network holds or is given
        self.written: dict[int, list[int]] = defaultdict(list)  # by storage the calls that write into it
        self.read: dict[int, list[int]] = defaultdict(list)
        self.needs: list[list[set[int]]] = []  # for each call, for each operand, the calls that this comes of
        self.kept: set[int] = set()  # calls with an effect that no result shows
        maker: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, record in enumerate(records):
            self.needs.append([self._sources(value, maker, last) for value in record.inputs])
            for value in record.inputs:
                self.read[self.home[value.key]].append(number)
            for value in record.outputs:
                maker[value.key] = number
            for output, shared in zip_longest(record.outputs, shared_operands(record)[: len(record.outputs)]):
                self.home.setdefault(output.key, self.home[shared.key] if shared is not None else output.key)
            for value in written_operands(record):
                storage = self.home[value.key]
                last[storage] = number
                self.written[storage].append(number)
                if storage in self.outside:
                    self.kept.add(number)
        self.ends = {maker[key] for key in outputs if key in maker} | self.kept
        self.ends |= {last[self.home[key]] for key in outputs if self.home.get(key) in last}

    def _sources(self, value: Value, maker: Mapping[int, int], last: Mapping[int, int]) -> set[int]:
        if value.key not in self.home:
            self.home[value.key] = value.key
            self.outside.add(value.key)
        found = {maker.get(value.key), last.get(self.home[value.key])}
        return {number for number in found if number is not None}

    def branches(self, sums: Mapping[int, Record]) -> dict[tuple[int, int], frozenset[int]]:
        """For each operand of each sum the calls that nothing else needs, where there are any."""
        import networkx as nx  # it takes long to import, and depth alone needs it here

        graph = nx.DiGraph()
        graph.add_edges_from((_OUTPUT, number) for number in self.ends)
        for number, operands in enumerate(self.needs):
            for place, sources in enumerate(operands):
                start: Any = number
                if number in sums and sources:
                    start = number, place
                    graph.add_edge(number, start)
                graph.add_edges_from((start, source) for source in sources)
        if _OUTPUT not in graph:
            return {}
        parents = nx.immediate_dominators(graph, _OUTPUT)
        children: dict[Any, list[Any]] = defaultdict(list)
        for node, parent in parents.items():
            if node != parent:
                children[parent].append(node)
        found = {}
        for start in [node for node in parents if isinstance(node, tuple)]:
            calls, waiting = set[int](), list(children[start])
            while waiting:
                node = waiting.pop()
                waiting += children[node]
                if not isinstance(node, tuple):
                    calls.add(node)
            if calls:
                found[start] = frozenset(calls | self._unread(calls, parents))
        return found

    def _unread(self, calls: set[int], parents: Mapping[object, object]) -> set[int]:
        """The calls that read what these make, and whose results nothing reads."""
        found: set[int] = set()
        for number in range(min(calls) + 1, len(self.records)):
            sources = {source for operand in self.needs[number] for source in operand}
            if number not in parents and sources & (calls | found):
                found.add(number)
        return found

    def stream(self, key: int, before: int) -> set[int]:
        """A tensor and, where it is a sum, what was added up to it: what parallel branches read is one of these."""
        found, waiting = {key}, [key]
        while waiting:
            total = waiting.pop()
            for record in self.records[:before]:
                if _adds(record) and record.outputs[0].key == total:
                    new = {value.key for value in record.inputs} - found
                    found |= new
                    waiting += new
        return found

    def come_of(self, calls: Iterable[int], keys: set[int]) -> bool:
        """Whether some of these calls, or one that they need, reads one of these tensors."""
        waiting, seen = list(calls), set(calls)
        while waiting:
            number = waiting.pop()
            if any(value.key in keys for value in self.records[number].inputs):
                return True
            new = set[int]().union(*self.needs[number]) - seen
            seen |= new
            waiting += new
        return False

    def written_over(self, number: int, operand: int, calls: frozenset[int]) -> str:
        """Whether, with the sum being its other addend, a later call would write over what is still read."""
        branch, other = addends(self.records[number], operand)
        total = self.home[self.records[number].outputs[0].key]
        skip = self.home[other.key]
        if total == skip:
            return "" if self.home[branch.key] != skip else "the branch is a view of the other addend"
        later = range(number + 1, len(self.records))
        if any(write in later and write not in calls for write in self.written[skip]):
            return "the other addend is written over in place while the sum is in use"
        if not self._writes_along(total, number):
            return ""
        reads = any(call > number and call not in calls for call in self.read[skip])
        returned = any(self.home.get(key) == skip for key in self.outputs)
        if reads or returned or skip in self.outside:
            return "the sum is written over in place while its other addend is in use"
        return ""

    def _writes_along(self, storage: int, after: int) -> bool:
        """Whether a storage, or one that removing further branches would make one with it, is written after a call."""
        if any(write > after for write in self.written[storage]):
            return True
        for number in self.read[storage]:
            if number > after and _adds(self.records[number]):
                total = self.home[self.records[number].outputs[0].key]
                if total != storage and self._writes_along(total, number):
                    return True
        return False


def _names(records: Sequence[Record], branches: Sequence[Iterable[int]]) -> list[str]:
    """A name for each branch: the module of the last weight that it multiplies with."""
    made: list[str] = []
    for calls in branches:
        weighted = [records[call] for call in sorted(calls) if records[call].macs]
        weights = [min(value.parameters) for record in weighted for value in record.inputs if value.parameters]
        base = name = PREFIX + (weights[-1].rpartition(".")[0] if weights else "")
        number = 1
        while name in made:
            number += 1
            name = f"{base}#{number}"
        made.append(name)
    return made
