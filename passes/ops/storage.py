"""Which memory a recorded call shares with its operands, and which it writes into, as its operator's schema says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from passes.nested_values import tree_leaves_only
from passes.ops.call import Record, Slot, Value
from passes.process.torch_private import OpOverload, pytree, schema_of


def shared_operands(record: Record) -> list[Value | None]:
    """For each returned tensor the operand whose storage it shares, by the operator's schema; None for fresh memory."""
    args, kwargs = record.template
    schema = schema_of(record.func)
    if record.func.overloadpacket is torch.ops.aten._unsafe_view:  # a view that the schema does not own up to
        return [record.inputs[0]]
    by_set: dict[str, Value] = {}
    for formal, actual in zip(schema.arguments, (*args, *(None,) * len(schema.arguments)), strict=False):
        actual = kwargs.get(formal.name, actual)
        slots = tree_leaves_only(Slot, actual)
        if formal.alias_info is not None and slots:
            for alias in formal.alias_info.before_set | formal.alias_info.after_set:
                by_set[alias] = record.inputs[slots[0].number]
    found: list[Value | None] = []
    for returned in schema.returns:
        many = "List" in str(returned.type)  # of a list the schema says only that it shares something with "*"
        marks = returned.alias_info.before_set or {"*"} if returned.alias_info is not None else ()
        source = next((by_set[mark] for mark in marks if mark in by_set), None)
        found += [source] * (len(record.outputs) - len(schema.returns) + 1 if many else 1)
    return found


def written_arguments(func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[object]:
    """The arguments of a call that it writes into, by the schema of its operator."""
    formals = schema_of(func).arguments
    given = [*zip(formals, args, strict=False), *((f, kwargs[f.name]) for f in formals if f.name in kwargs)]
    return (actual for formal, actual in given if formal.alias_info is not None and formal.alias_info.is_write)


def written_operands(record: Record) -> list[Value]:
    """The operands that a recorded call writes into."""
    args, kwargs = record.template
    leaves = pytree.tree_leaves(list(written_arguments(record.func, args, kwargs)))
    return [record.inputs[leaf.number] for leaf in leaves if isinstance(leaf, Slot)]
