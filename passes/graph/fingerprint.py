"""What names a graph across processes: a digest of its structure, and its inputs as plain data."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from passes.graph.module_copies import owned_tensors
from passes.graph.nodes import input_nodes
from passes.ops.constant_indices import stated


def fingerprint(gm: fx.GraphModule) -> str:
    """A digest of a graph's structure and of its tensors' shapes: equal for equal networks, whatever the weights.

    Numbers that `x[:, self.order]` picks by are structure too, not weights.
    """
    lines = []
    for node in gm.graph.nodes:
        target = node.target if isinstance(node.target, str) else _qualified(node.target)
        arguments = ", ".join(a.name if isinstance(a, fx.Node) else repr(a) for a in node.args)
        lines.append(f"{node.op}|{node.name}|{target}|{arguments}|{node.kwargs or ''}")
    indices = _indices(gm.graph)
    for name, tensor in owned_tensors(gm):
        lines.append(f"{name}|{list(tensor.shape)}")
        numbers = stated(tensor) if name in indices else None
        if numbers is not None:
            lines.append(f"{numbers.tolist()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _indices(graph: fx.Graph) -> set[str]:
    """The names of tensors that some call takes positions by."""
    picks = (operator.getitem, torch.index_select, torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default)
    return {
        str(node.target)
        for node in graph.nodes
        if node.op == "get_attr" and any(user.target in picks or user.target == "index_select" for user in node.users)
    }


def _qualified(target: object) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', getattr(target, '__name__', target))}"


def describe_inputs(gm: fx.GraphModule, vals: Mapping[str, object]) -> list[Any]:
    """Shapes and dtypes of the example inputs as plain data, from which `example_inputs_of` makes meta tensors."""

    def plain(value: object) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, Mapping):
            return {"dict": {str(k): plain(v) for k, v in value.items()}}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__ if type(value) in (list, tuple) else "tuple": [plain(v) for v in value]}
        return {"value": value if isinstance(value, (int, float, str, bool, type(None))) else None}

    return [plain(vals[n.name]) for n in input_nodes(gm.graph)]


def example_inputs_of(described: Sequence[object]) -> tuple[Any, ...]:
    """Meta tensors of the shapes and dtypes that `describe_inputs` wrote down."""

    def made(item: Any) -> Any:
        if "tensor" in item:
            return torch.empty(item["tensor"], dtype=getattr(torch, item["dtype"]), device="meta")
        if "dict" in item:
            return {k: made(v) for k, v in item["dict"].items()}
        if "list" in item:
            return [made(v) for v in item["list"]]
        if "tuple" in item:
            return tuple(made(v) for v in item["tuple"])
        return item["value"]

    return tuple(made(item) for item in described)
