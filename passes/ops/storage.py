"""Which memory a recorded call shares with its operands, and which it writes into, as its operator's schema says."""

from __future__ import annotations

import torch

from passes.ops.call import Record, Slot, Value
from passes.process.torch_private import pytree, schema_of


def shared_operands(record: Record) -> list[Value | None]:
    """For each returned tensor the operand whose storage it shares, by the operator's schema; None for fresh memory."""
    args, kwargs = record.template
    schema = schema_of(record.func)
    if record.func.overloadpacket is torch.ops.aten._unsafe_view:  # a view that the schema does not own up to
        return [record.inputs[0]]
    by_set: dict[str, Value] = {}
    for formal, actual in zip(schema.arguments, (*args, *(None,) * len(schema.arguments)), strict=False):
        actual = kwargs.get(formal.name, actual)
        slots = [s for s in pytree.tree_leaves(actual) if isinstance(s, Slot)]
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


def written_operands(record: Record) -> list[Value]:
    """The operands that a call writes into, by the schema of its operator."""
    args, kwargs = record.template
    formals = schema_of(record.func).arguments
    given = [*zip(formals, args, strict=False), *((f, kwargs[f.name]) for f in formals if f.name in kwargs)]
    return [
        record.inputs[leaf.number]
        for formal, actual in given
        if formal.alias_info is not None and formal.alias_info.is_write
        for leaf in pytree.tree_leaves(actual)
        if isinstance(leaf, Slot)
    ]
