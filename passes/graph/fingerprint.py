"""What names a graph across processes: a digest of its structure, and its inputs as plain data."""

from __future__ import annotations

import hashlib
import operator

import torch
from torch import fx

from passes.graph.module_copies import owned_tensors
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
