"""How a node's literal arguments follow: as its operator's rule says, for its method, function and ATen spellings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from passes.ops import Record, signature
from passes.ops.literals import Site
from passes.ops.table import packet_traits
from passes.process.torch_private import OpOverload, OpOverloadPacket

_SPELLED_IN = (torch, F, torch.Tensor)


def operator_of(node: fx.Node) -> Any:
    """The operator that a node calls: an overload, a packet, or a Python function; None where it calls a module."""
    if node.op == "call_method":
        return _of_method(str(node.target))
    return _of_function(node.target) if node.op == "call_function" else None


@cache
def _of_method(name: str) -> object:
    return getattr(torch.ops.aten, name, None)


@cache
def _of_function(target: object) -> object:
    name = getattr(target, "__name__", "")
    if isinstance(target, (OpOverload, OpOverloadPacket)) or not name:
        return target
    spelled = any(getattr(space, name, None) == target for space in _SPELLED_IN)
    return getattr(torch.ops.aten, name, target) if spelled else target


@cache
def _argument_names(operator: Any) -> Sequence[str]:
    if isinstance(operator, OpOverloadPacket):
        operator = getattr(operator, operator.overloads()[0])
    if isinstance(operator, OpOverload):
        return signature(operator)[0]
    try:
        return list(inspect.signature(operator).parameters)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return ()


def restating(node: fx.Node, records: Sequence[Record]) -> Callable[[Site], None] | None:
    """What restates the literals of `node`, which made the calls `records`; None where nothing is known of any."""
    called = operator_of(node)
    if called is None:
        return None
    stated = packet_traits(called).literals
    return stated or (_as_the_rule_says if _named(records) & set(_argument_names(called)) else None)


def _named(records: Sequence[Record]) -> set[str]:
    """The arguments that a rule has tied to axes (`Call.literal`)."""
    return {key.partition(".")[0] for record in records for key in record.literals}


def _as_the_rule_says(site: Site) -> None:
    names = list(_argument_names(operator_of(site.node)))
    for key, axis in ((key, axis) for record in site.records for key, axis in record.literals.items()):
        name, _, place = key.partition(".")
        if name not in names:
            continue
        old, new = site.argument(names.index(name), name), site.new_size(axis)
        if place and isinstance(old, (list, tuple)) and isinstance(old[int(place)], int):
            site.set(names.index(name), name, [*old[: int(place)], new, *old[int(place) + 1 :]])
        elif isinstance(old, int) and old != new:
            site.set(names.index(name), name, new)


def pin_values(node: fx.Node, old: Callable[[fx.Node], Any], records: Sequence[Record]) -> bool:
    """Give numbers that enter what `node` computes the dense network's values; whether there were any.

    Such a number (``q / math.sqrt(q.size(-1))``, ``torch.tensor(d)``) follows a size, but the masked network computes
    with the old one. `old` gives it for an argument that has changed, None for others. Which arguments are such
    numbers is a trait (`values`).
    """

    def pinned(argument: Any) -> Any:
        return fx.map_arg(argument, lambda used: used if (number := old(used)) is None else number)

    called = operator_of(node)
    traits, names, before = packet_traits(called), list(_argument_names(called)), (node.args, node.kwargs)
    values = traits.values
    if values is None:
        values = () if traits.literals else tuple(name for name in names if name not in _named(records))
    if values and len(values) == len(names) or not names:
        node.args, node.kwargs = pinned(node.args), pinned(node.kwargs)
    for name in values:
        if name in node.kwargs:
            node.update_kwarg(name, pinned(node.kwargs[name]))
        elif name in names[: len(node.args)]:
            node.update_arg(names.index(name), pinned(node.args[names.index(name)]))
    return (node.args, node.kwargs) != before
