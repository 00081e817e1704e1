"""Two traces of one model, in train and in eval mode, made one graph that follows the live mode."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

_CONTAINERS = (list, tuple, dict, slice)


@dataclass(frozen=True)
class _Choice:
    """What is one thing in train mode, another in eval mode: constants, or nodes of the graph of train mode."""

    trained: Any
    evaluated: Any


class _Differ(Exception):
    pass


@dataclass
class _Pairing:
    """Which node of the graph of train mode does what a node of the graph of eval mode does."""

    modules: Mapping[str, nn.Module]
    partner: dict[fx.Node, fx.Node] = field(default_factory=dict)  # by node of eval mode
    extra: set[fx.Node] = field(default_factory=set)  # in train mode only
    arguments: dict[fx.Node, Any] = field(default_factory=dict)


def merge(trained: fx.Graph, evaluated: fx.Graph, model: nn.Module, stored: tuple[dict[str, Any], ...] = ()) -> bool:
    """Make `trained`, traced in train mode, right in both modes; `evaluated` is the trace in eval mode.

    Every argument that differs becomes a look-up by the live flag of a module: `(eval value, train value)[training]`,
    or the flag itself. Train mode may have calls of its own (a stochastic depth, say), which then run in
    both modes and are passed over in one. False, and nothing changed, where the graphs differ otherwise, or
    where such a call has parameters or writes. `stored` are the tensors that the two traces stored under names of
    their own.
    """
    pairing = _Pairing(dict(model.named_modules()))
    nodes = iter(trained.nodes)
    for twin in evaluated.nodes:
        node = next((node for node in nodes if _paired_or_extra(pairing, node, twin, stored)), None)
        if node is None or node in pairing.extra:
            return False
    for node, (args, kwargs) in pairing.arguments.items():
        if node.op != "placeholder" and _chosen((args, kwargs)):  # the arguments of a placeholder are defaults
            node.args, node.kwargs = _looked_up(args, node, pairing.modules), _looked_up(kwargs, node, pairing.modules)
    return True


def _paired_or_extra(pairing: _Pairing, node: fx.Node, twin: fx.Node, stored: tuple[dict[str, Any], ...]) -> bool:
    """Pair the two, or note that only train mode has `node`; False in the second case, if that is possible."""
    try:
        if (node.op, node.target) != (twin.op, twin.target) or not _same_tensor(node, stored):
            raise _Differ
        pairing.arguments[node] = _compared(_arguments(node), _arguments(twin), pairing)
        pairing.partner[twin] = node
    except _Differ:
        pairing.extra.add(node)
        return not _can_be_extra(node, pairing.modules)
    return True


def _can_be_extra(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it does no harm to run this call of train mode in eval mode too."""
    if node.op == "call_module":
        return not modules[str(node.target)].state_dict()
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[2] == "training"
    schema = getattr(node.target, "_schema", None)
    writes = node.target is operator.setitem or (schema is not None and schema.is_mutable)
    return node.op == "call_function" and not writes


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


def _same_tensor(node: fx.Node, stored: tuple[dict[str, Any], ...]) -> bool:
    if node.op != "get_attr" or not any(node.target in tensors for tensors in stored):
        return True
    first, second = (tensors.get(str(node.target)) for tensors in stored)
    return _same(first, second)


def _same(first: Any, second: Any) -> bool:
    """Whether two stored things are alike: tensors, or graphs inside the graph (a part under autocast, say)."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first is second or (first.shape == second.shape and torch.equal(first, second))
    if isinstance(first, fx.GraphModule) and isinstance(second, fx.GraphModule) and first.code == second.code:
        parts, others = (
            {str(n.target): operator.attrgetter(str(n.target))(part) for n in part.graph.find_nodes(op="get_attr")}
            for part in (first, second)
        )
        return parts.keys() == others.keys() and all(_same(part, others[name]) for name, part in parts.items())
    return first is second


def _compared(trained: Any, evaluated: Any, pairing: _Pairing) -> Any:
    """`trained` with a _Choice in place of each argument that is another in eval mode; raises _Differ."""
    if isinstance(trained, _CONTAINERS) or isinstance(evaluated, _CONTAINERS):
        return _compared_parts(trained, evaluated, pairing)
    if isinstance(evaluated, fx.Node):
        same = pairing.partner[evaluated]
        if trained is same:
            return trained
        if trained not in pairing.extra:
            raise _Differ
        return _Choice(trained, same)
    if isinstance(trained, fx.Node):
        raise _Differ
    return trained if type(trained) is type(evaluated) and trained == evaluated else _Choice(trained, evaluated)


def _compared_parts(trained: Any, evaluated: Any, pairing: _Pairing) -> Any:
    if type(trained) is not type(evaluated):
        raise _Differ
    if isinstance(trained, slice):
        ends = ("start", "stop", "step")
        return slice(*(_compared(getattr(trained, end), getattr(evaluated, end), pairing) for end in ends))
    if len(trained) != len(evaluated) or (isinstance(trained, dict) and list(trained) != list(evaluated)):
        raise _Differ
    if isinstance(trained, dict):
        return {key: _compared(value, evaluated[key], pairing) for key, value in trained.items()}
    parts = [_compared(a, b, pairing) for a, b in zip(trained, evaluated, strict=True)]
    return tuple(parts) if isinstance(trained, tuple) else parts


def _chosen(arguments: Any) -> bool:
    if isinstance(arguments, slice):
        return _chosen((arguments.start, arguments.stop, arguments.step))
    if isinstance(arguments, (list, tuple, dict)):
        return any(_chosen(part) for part in (arguments.values() if isinstance(arguments, dict) else arguments))
    return isinstance(arguments, _Choice)


def _looked_up(value: Any, node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """`value` with a node that looks the mode up, before `node`, in place of each _Choice."""
    if isinstance(value, slice):
        return slice(*(_looked_up(end, node, modules) for end in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: _looked_up(part, node, modules) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_looked_up(part, node, modules) for part in value)
    if not isinstance(value, _Choice):
        return value
    owner = value.trained if isinstance(value.trained, fx.Node) else node
    with node.graph.inserting_before(node):
        flag = node.graph.create_node("get_attr", _flag(owner, modules))
        if value.evaluated is False and value.trained is True:
            return flag
        return node.graph.call_function(operator.getitem, ((value.evaluated, value.trained), flag))


def _flag(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The flag of the module whose forward made the call; torch.export writes "conv@1" for a second call of conv."""
    stack = node.meta.get("nn_module_stack")
    path = str(next(reversed(stack.values()))[0]).partition("@")[0] if stack else ""
    return f"{path}.training" if path in modules and path else "training"
