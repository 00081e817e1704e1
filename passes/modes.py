"""Two traces of one model, in train and in eval mode, made one graph where only constants tell them apart."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class _Choice:
    """A constant that is `here` in the mode of the first graph and `there` in the other mode."""

    here: Any
    there: Any


class _Differ(Exception):
    pass


def merge(graph: fx.Graph, other: fx.Graph, training: bool, constants: dict[str, Any], others: dict[str, Any]) -> bool:
    """Make `graph`, traced with the modules in mode `training`, right in both modes; `other` is its trace in the other.

    Every constant that differs becomes a look-up by the live flag of the module whose forward made the call,
    `(eval value, train value)[training]`, or the flag itself. False, and nothing changed, where the graphs differ
    otherwise.
    `constants` and `others` hold the tensors that the traces stored under names of their own.
    """
    nodes, twins = list(graph.nodes), list(other.nodes)
    if len(nodes) != len(twins):
        return False
    partner = dict(zip(twins, nodes, strict=True))
    arguments = []
    try:
        for node, twin in zip(nodes, twins, strict=True):
            if (node.op, node.target) != (twin.op, twin.target) or not _same_constant(node, constants, others):
                return False
            arguments.append(_compare(_arguments(node), _arguments(twin), partner))
    except _Differ:
        return False
    for node, (args, kwargs) in zip(nodes, arguments, strict=True):
        if _differs((args, kwargs)) and node.op != "placeholder":  # whose arguments are default values
            _apply(graph, node, args, kwargs, training)
    return True


def _arguments(node: fx.Node) -> tuple[Any, Any]:
    """With the defaults of an ATen operator filled in: export leaves out what equals them, perhaps in one mode only."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.args, node.kwargs
    arguments = node.target._schema.arguments
    args = [*node.args]
    kwargs = dict(node.kwargs)
    for position, argument in enumerate(arguments):
        if argument.kwarg_only:
            kwargs.setdefault(argument.name, argument.default_value)
        elif position >= len(args):
            args.append(kwargs.pop(argument.name, argument.default_value))
    return tuple(args), {argument.name: kwargs[argument.name] for argument in arguments if argument.kwarg_only}


def _same_constant(node: fx.Node, constants: dict[str, Any], others: dict[str, Any]) -> bool:
    if node.op != "get_attr" or (node.target not in constants and node.target not in others):
        return True
    pair = (constants.get(str(node.target)), others.get(str(node.target)))
    if all(isinstance(value, torch.Tensor) for value in pair):
        return pair[0] is pair[1] or torch.equal(*pair)  # type: ignore[arg-type]
    return pair[0] is pair[1]


def _compare(here: Any, there: Any, partner: dict[fx.Node, fx.Node]) -> Any:
    """`here` with a _Choice in place of each constant that is another one `there`; raises _Differ."""
    if isinstance(here, fx.Node) or isinstance(there, fx.Node):
        if partner.get(there) is not here:
            raise _Differ
        return here
    if isinstance(here, (list, tuple, dict, slice)) or isinstance(there, (list, tuple, dict, slice)):
        return _compare_parts(here, there, partner)
    return here if type(here) is type(there) and here == there else _Choice(here, there)


def _compare_parts(here: Any, there: Any, partner: dict[fx.Node, fx.Node]) -> Any:
    if type(here) is not type(there):
        raise _Differ
    if isinstance(here, slice):
        parts = [_compare(getattr(here, end), getattr(there, end), partner) for end in ("start", "stop", "step")]
        return slice(*parts)
    if len(here) != len(there) or (isinstance(here, dict) and list(here) != list(there)):
        raise _Differ
    if isinstance(here, dict):
        return {key: _compare(value, there[key], partner) for key, value in here.items()}
    parts = [_compare(a, b, partner) for a, b in zip(here, there, strict=True)]
    return tuple(parts) if isinstance(here, tuple) else parts


def _differs(arguments: Any) -> bool:
    if isinstance(arguments, slice):
        return _differs((arguments.start, arguments.stop, arguments.step))
    if isinstance(arguments, (list, tuple, dict)):
        return any(_differs(part) for part in (arguments.values() if isinstance(arguments, dict) else arguments))
    return isinstance(arguments, _Choice)


def _apply(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any, training: bool) -> None:
    def looked_up(value: Any) -> Any:
        if isinstance(value, _Choice):
            pair = (value.there, value.here) if training else (value.here, value.there)
            with graph.inserting_before(node):
                flag = graph.create_node("get_attr", _flag(node))
                return flag if pair == (False, True) else graph.call_function(operator.getitem, (pair, flag))
        if isinstance(value, slice):
            return slice(looked_up(value.start), looked_up(value.stop), looked_up(value.step))
        if isinstance(value, dict):
            return {key: looked_up(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(looked_up(part) for part in value)
        return value

    node.args, node.kwargs = looked_up(args), looked_up(kwargs)


def _flag(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    path = (
        str(next(reversed(stack.values()))[0]).partition("@")[0] if stack else ""
    )  # export: "conv@1" on a second call
    return f"{path}.training" if path else "training"
