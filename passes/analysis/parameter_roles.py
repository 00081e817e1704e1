"""What operators use a parameter's dimensions as, and the readable names of groups that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from passes.axes.expressions import Axis, Variable, leaves
from passes.ops import Record, Slot, Value
from passes.ops.facts import facts_of

# What a parameter's name says beyond its module: conv.weight, conv.parametrizations.weight.original1, rnn.weight_ih_l0.
_PARAMETER = re.compile(r"(\.parametrizations)?\.(\w*_)?(weight|bias)(\.original\d?|_v|_g|_orig|_[ih]h(_l\d+\w*)?)?$")


def layer_of(tensor: str) -> str:
    """The layer that a parameter belongs to: its module's name ("" is the whole network), else the parameter's own.

    >>> layer_of("blocks.0.attention.in_proj_weight"), layer_of("rnn.weight_hh_l0"), layer_of("bias"), layer_of("scale")
    ('blocks.0.attention', 'rnn', '', 'scale')
    """
    return _PARAMETER.sub("", f".{tensor}").removeprefix(".")


def roles_of(
    records: Iterable[Record], tensors: Mapping[str, tuple[Axis, ...]]
) -> dict[tuple[str, Variable, int], str]:
    """The role (see `Slice`) of a variable in a dimension of a parameter; the first operator that states one counts."""
    uses: dict[tuple[str, Variable], str] = {}
    for record in records:
        of_parameters = [(place, value) for place, value in enumerate(record.inputs) if value.parameters]
        if not of_parameters:
            continue
        stated = _stated_roles(record)
        for place, value in of_parameters if stated or record.macs else ():
            for variable, role in _uses(record, place, value, stated).items():
                for tensor in value.parameters:
                    uses.setdefault((tensor, variable), role)
    roles = {}
    for tensor, axes in tensors.items():
        found = [(variable, dim) for dim, axis in enumerate(axes) for variable in leaves(axis)]
        for variable, dim in found:
            role = uses.get((tensor, variable), "")
            if role == "input" and dim == 0 and any(v is variable and d > 0 for v, d in found):
                role = "output"  # x + linear(x): one group in both dimensions, whose rows are what it produces
            if role:
                roles[tensor, variable, dim] = role
    return roles


def _stated_roles(record: Record) -> dict[int, str]:
    """The operator's `roles` (see `Traits`), by the numbers of the operands that they are stated of."""
    stated = facts_of(record.func).roles
    if not stated:
        return {}
    args, kwargs = record.template
    given = [(args[place] if place < len(args) else kwargs.get(name), role) for place, name, role in stated]
    return {argument.number: role for argument, role in given if isinstance(argument, Slot)}


def _uses(record: Record, place: int, value: Value, stated: Mapping[int, str]) -> dict[Variable, str]:
    """What the variables of a parameter are used as that is operand number `place`. stated: see `_stated_roles`."""
    if place in stated:
        return {v: stated[place] for axis in value.axes for v in leaves(axis)}
    if not record.macs or len(value.axes) < 2:
        return {}
    mine = [v for axis in value.axes for v in leaves(axis)]
    contracted = {v for axis in record.contracted for v in leaves(axis)}
    entering = {v for other in record.inputs if not other.parameters for axis in other.axes for v in leaves(axis)}
    return {v: "input" if v in contracted else "carried" if v in entering else "output" for v in mine}


def names_of(
    tensors: Mapping[str, tuple[Axis, ...]],
    roles: Mapping[tuple[str, Variable, int], str],
    own: Sequence[str],
    trainable: frozenset[str],
) -> dict[str, Variable]:
    """A stable name for each variable of a trainable parameter: the module that produces it, else the first one.

    own: parameters in order (see `as_used`), tied ones once.
    """
    producer: dict[Variable, str] = {}
    first: dict[Variable, str] = {}
    for tensor in own:
        if tensor not in trainable:
            continue
        for dim, axis in enumerate(tensors[tensor]):
            for variable in leaves(axis):
                first.setdefault(variable, tensor)
                if roles.get((tensor, variable, dim)) == "output":
                    producer.setdefault(variable, tensor)
    names: dict[str, Variable] = {}
    for variable, tensor in first.items():
        base = layer_of(producer.get(variable, tensor)) or producer.get(variable, tensor)
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}#{number}"
        names[name] = variable
    return names


def as_used(names: Iterable[str], records: Iterable[Record]) -> list[str]:
    """Tensors in an order that is the program's and no front end's: a module's own, then its children as they are met.

    Unused ones come last among their siblings.
    """
    met: dict[str, int] = {}
    paths_to = cache(_paths_to)
    alone = [name for r in records for value in r.inputs if len(value.parameters) == 1 for name in value.parameters]
    for module in dict.fromkeys([name.rpartition(".")[0] for name in alone]):
        for path in paths_to(module):
            met.setdefault(path, len(met))
    place = cache(lambda module: [met.get(path, len(met)) for path in paths_to(module)])
    return sorted(names, key=lambda name: place(name.rpartition(".")[0]))


def _paths_to(module: str) -> list[str]:
    """The paths of the modules around that at a path, and its own, the outermost first, without the root."""
    ends = [place for place, letter in enumerate(module) if letter == "."]
    return [*(module[:end] for end in ends), module] if module else []
