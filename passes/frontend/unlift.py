"""An exported module's graph in the form that symbolic tracing gives: parameters by name in, ordinary values out."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from passes.process.torch_private import output_tree, pytree, schema_of

_ATEN = torch.ops.aten
# Export's checks fix types and devices that a user of the graph may still change.
_DROPPED = {_ATEN._assert_tensor_metadata.default}
_FOREIGN_META = ("val", "tensor_meta", "from_node")  # fake tensors of export's own mode, with symbolic sizes


def plain_graph(source: fx.GraphModule, signature: inspect.Signature, inputs: object) -> fx.Graph:
    """The graph of `source` (the module of an ExportedProgram) for the forward with this signature.

    `inputs`: the (args, kwargs) of the export. Arguments that the example left out are not accepted by the graph.
    """
    graph = fx.Graph()
    copies = _inputs(graph, source, signature, inputs)
    for node in source.graph.nodes:
        if node in copies or node.op == "call_module" or node.target in _DROPPED:
            continue  # the modules that export calls check its guards
        if node.op == "output":
            leaves = [copies.get(leaf, leaf) for leaf in node.args[0]]
            graph.output(_value(graph, output_tree(source), iter(leaves)))
        else:
            copies[node] = _copied(graph, node, copies.__getitem__)
    _drop_contiguous(graph)
    for module in source.modules():  # a part under autocast or no_grad is a graph inside the graph
        if isinstance(module, fx.GraphModule) and module is not source:
            _free(module)
    return graph


def _free(module: fx.GraphModule) -> None:
    """What holds for the graph holds for those inside it: no checks of types, no dependence on strides."""
    for target in _DROPPED:
        for node in module.graph.find_nodes(op="call_function", target=target):
            module.graph.erase_node(node)
    _drop_contiguous(module.graph)
    module.recompile()


def _drop_contiguous(graph: fx.Graph) -> None:
    """Let views copy where they must, so that no call need depend on strides: export leaves calls out by them."""
    for node in graph.find_nodes(op="call_function", target=_ATEN.view.default):
        node.target = _ATEN.reshape.default
    for node in graph.find_nodes(op="call_function", target=_ATEN.contiguous.default):
        written = any(schema_of(user.target) and schema_of(user.target).is_mutable for user in node.users)
        if not written and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _copied(graph: fx.Graph, node: fx.Node, get: Callable[[fx.Node], fx.Node]) -> fx.Node:
    new = graph.node_copy(node, get)
    for key in _FOREIGN_META:
        new.meta.pop(key, None)
    if new.target is _ATEN.lift_fresh_copy.default:  # a constant of the code, new at each call
        new.target = _ATEN.clone.default
    if new.target is _ATEN.detach_.default:
        new.target = _ATEN.detach.default
    return new


def _inputs(
    graph: fx.Graph, source: fx.GraphModule, signature: inspect.Signature, inputs: object
) -> dict[fx.Node, fx.Node]:
    """A placeholder for each parameter of forward; the leaves of a nested argument are taken out of it."""
    leaves, _ = pytree.tree_flatten_with_path(inputs)
    nodes = source.graph.find_nodes(op="placeholder")
    assert len(nodes) == len(leaves), "export makes one placeholder for each leaf of the inputs"
    given = [_parameter(signature, path) for path, _ in leaves]
    placeholders = {
        name: graph.placeholder(_starred(parameter), default_value=parameter.default)
        for name, parameter in signature.parameters.items()
        if any(name == parameter_name for parameter_name, _ in given)
    }
    return {node: _taken(graph, placeholders[name], path) for node, (name, path) in zip(nodes, given, strict=True)}


def _parameter(signature: inspect.Signature, path: tuple[Any, ...]) -> tuple[str, tuple[object, ...]]:
    """The parameter that receives the leaf at this path of (args, kwargs), and the way from it to the leaf."""
    where, first, *rest = path
    parameters = list(signature.parameters.values())
    if where.idx == 1:
        if first.key in signature.parameters:
            return first.key, tuple(rest)
        rest_of_names = next(p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD)
        return rest_of_names, (first, *rest)
    starred = next((i for i, p in enumerate(parameters) if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if starred is None or first.idx < starred:
        return parameters[first.idx].name, tuple(rest)
    return parameters[starred].name, (pytree.SequenceKey(first.idx - starred), *rest)


def _starred(parameter: inspect.Parameter) -> str:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return "*" + parameter.name
    return "**" + parameter.name if parameter.kind is inspect.Parameter.VAR_KEYWORD else parameter.name


def _taken(graph: fx.Graph, node: fx.Node, path: tuple[Any, ...]) -> fx.Node:
    for key in path:
        if isinstance(key, pytree.GetAttrKey):
            node = graph.call_function(getattr, (node, key.name))
        else:
            node = graph.call_function(operator.getitem, (node, key.idx if hasattr(key, "idx") else key.key))
    return node


def _value(graph: fx.Graph, spec: pytree.TreeSpec, leaves: Any) -> Any:
    """The result that `spec` describes: tuples, lists and dicts as they are, data classes by a call of the class.

    What else pytree knows (caches, say) becomes a dict or tuple of its parts.
    """
    if spec.is_leaf():
        return next(leaves)
    children = spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs
    parts = [_value(graph, child, leaves) for child in children]
    if spec.type in (tuple, list):
        return spec.type(parts)
    if spec.type in (dict, OrderedDict):
        return dict(zip(spec.context, parts, strict=True))
    names = _field_names(spec, len(parts))
    if names is None:
        return tuple(parts)
    kind: Any = spec.type
    if dataclasses.is_dataclass(spec.type):
        return graph.call_function(kind, kwargs=dict(zip(names, parts, strict=True)))
    return dict(zip(names, parts, strict=True))


def _field_names(spec: pytree.TreeSpec, count: int) -> list[str] | None:
    """The names of the parts, as torch.export.register_dataclass and transformers keep them in the context."""
    for names in (spec.context, *(spec.context if isinstance(spec.context, (list, tuple)) else ())):
        if isinstance(names, (list, tuple)) and len(names) == count and all(isinstance(name, str) for name in names):
            return list(names)
    return None
