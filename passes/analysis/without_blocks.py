"""A network's structure without some of its residual branches: their calls are left out, their sums are one addend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from passes.analysis.residual_blocks import Block, addends
from passes.analysis.tape import Structure, map_values, with_fields
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Value
from passes.stream.module_run import Lifetimes


def without(
    structure: Structure, blocks: Mapping[str, Block], removed: Iterable[str]
) -> tuple[Structure, dict[str, Block]]:
    """The structure without the branches of `removed`, and the blocks that are left, numbered as its calls are."""
    records = structure.records
    chosen = sorted((blocks[name] for name in dict.fromkeys(removed)), key=lambda block: block.sum)
    gone = {number for block in chosen for number in (*block.calls, block.sum)}
    instead = _instead(records, chosen)
    dropped = {name for block in chosen for name in block.tensors}
    kept = [number for number in range(len(records)) if number not in gone]
    made = [_instead_in(records[number], instead) for number in kept]
    alive = {value.key for record in made for value in record.outputs}
    stale = {value.key for number in gone for value in records[number].outputs} - alive - instead.keys()
    sums = {records[block.sum].node for block in chosen}

    def is_left(node: str) -> bool:
        values = tree_leaves_only(Value, structure.values[node])
        read = any(value.key in stale or (value.parameters and value.parameters <= dropped) for value in values)
        return node not in sums and not read

    nodes = [node for node in structure.values if is_left(node)]
    place = list(accumulate((number not in gone for number in range(len(records))), initial=0))
    left = Structure(
        {name: axes for name, axes in structure.tensors.items() if name not in dropped},
        {node: map_values(lambda value: instead.get(value.key, value), structure.values[node]) for node in nodes},
        made,
        {node: value for node, value in structure.vals.items() if node not in structure.values or is_left(node)},
        lambda: structure.beside,
        structure.lifetimes and _lifetimes(structure.lifetimes, instead, stale, place),
    )
    return left, {name: _numbered(block, place, gone) for name, block in blocks.items() if block.sum not in gone}


def _instead(records: Sequence[Record], chosen: Sequence[Block]) -> dict[int, Value]:
    """By the key of a sum that is not added up any more, the addend that stands for it."""
    instead: dict[int, Value] = {}
    for block in chosen:
        total, other = records[block.sum].outputs[0], addends(records[block.sum], block.operand)[1]
        other = instead.get(other.key, other)
        if total.key != other.key:
            instead[total.key] = other
    return instead


def _instead_in(record: Record, instead: Mapping[int, Value]) -> Record:
    def value(known: Value) -> Value:
        return instead.get(known.key, known)

    if not any(known.key in instead for known in (*record.inputs, *record.outputs)):
        return record
    return with_fields(record, inputs=list(map(value, record.inputs)), outputs=list(map(value, record.outputs)))


def _lifetimes(lifetimes: Lifetimes, instead: Mapping[int, Value], stale: set[int], place: Sequence[int]) -> Lifetimes:
    """When tensors were freed, counted in the calls that are left; what replaces a sum, as that was."""
    ends = {key: place[made] for made, key in lifetimes.freed}
    together: dict[int, set[int]] = {}
    for key, value in instead.items():
        together.setdefault(value.key, {value.key}).add(key)
    shared = set[int]().union(*together.values())
    freed = [(made, key) for key, made in ends.items() if key not in shared and key not in stale]
    freed += [(max(ends[k] for k in keys), key) for key, keys in together.items() if keys <= ends.keys()]
    return Lifetimes(lifetimes.inputs, tuple(sorted(freed)))


def _numbered(block: Block, place: Sequence[int], gone: set[int]) -> Block:
    calls = frozenset(place[number] for number in block.calls if number not in gone)
    return Block(block.name, place[block.sum], block.operand, calls, block.tensors, block.taken)
