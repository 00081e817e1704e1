"""What a caller hands to a search, checked: the network, its example inputs, and its prunable groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxprune.errors import InputError
from passes import Coupling, PassError, capture, couple

LEAVE_OUT = (
    'example_inputs may be left out only where the graph\'s placeholders carry meta["val"] or meta["tensor_meta"]'
)


def captured(model: Any, example_inputs: Any) -> tuple[GraphModule, Any]:
    """The graph of a module and the example inputs to analyse it with."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"netadapt: got a {type(model).__name__}; expected a torch.nn.Module or a torch.fx.GraphModule."
        )
    if isinstance(model, GraphModule) and not any(
        node.op not in ("placeholder", "output") for node in model.graph.nodes
    ):
        raise InputError("netadapt: the graph is empty: it holds no operation, so there is nothing to prune.")
    if example_inputs is None:
        example_inputs = inputs_from_meta(model)
    if isinstance(example_inputs, list):
        example_inputs = tuple(example_inputs)
    gm = capture(model, example_inputs)
    if not any(node.op not in ("placeholder", "output", "get_attr") for node in gm.graph.nodes):
        raise InputError("netadapt: the graph is empty: it holds no operation, so there is nothing to prune.")
    return gm, example_inputs


def inputs_from_meta(model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Example inputs of the shapes and types that the placeholders of a traced graph carry."""
    if not isinstance(model, GraphModule):
        raise InputError(
            f"netadapt: example_inputs is missing, and a {type(model).__name__} does not say what it takes; pass "
            "example_inputs=torch.randn(1, 3, 224, 224), or what fits. "
            f"({LEAVE_OUT}.)"
        )
    found = []
    for node in model.graph.find_nodes(op="placeholder"):
        meta = node.meta.get("val")
        meta = meta if meta is not None else node.meta.get("tensor_meta")
        shape, dtype = getattr(meta, "shape", None), getattr(meta, "dtype", None)
        if shape is None or dtype is None:
            if node.args:  # an argument with a default may stay out
                continue
            raise InputError(
                f"netadapt: example_inputs is missing, and placeholder {node.name!r} carries no shape; {LEAVE_OUT}. "
                "Pass example_inputs, or run torch.fx.passes.shape_prop.ShapeProp(gm).propagate(...) first."
            )
        sizes = [int(getattr(size, "node", None).hint if isinstance(size, torch.SymInt) else size) for size in shape]  # type: ignore[union-attr]
        found.append(torch.zeros(sizes, dtype=dtype))
    return tuple(found)


def coupled(gm: GraphModule, example_inputs: Any) -> Coupling:
    """The analysis of the graph; inputs that it does not take are an error that says so."""
    try:
        return couple(gm, example_inputs)
    except PassError:
        raise
    except Exception as error:  # whatever the network's own operators raise on a wrong shape or type
        raise InputError(
            f"netadapt: the network does not run on example_inputs ({described(example_inputs)}): "
            f"{type(error).__name__}: {error}. "
            "Pass inputs that it takes: a tensor, a tuple of positional arguments, or a dict of keywords."
        ) from error


def described(example_inputs: Any) -> str:
    """The inputs in words: shapes and types."""
    if isinstance(example_inputs, torch.Tensor):
        return f"{tuple(example_inputs.shape)} {str(example_inputs.dtype).removeprefix('torch.')}"
    if isinstance(example_inputs, dict):
        return ", ".join(f"{name}={described(value)}" for name, value in example_inputs.items())
    if isinstance(example_inputs, tuple | list):
        return ", ".join(described(value) for value in example_inputs)
    return type(example_inputs).__name__


def frozen_reasons(coupling: Coupling, most: int = 5) -> str:
    """Why nothing, or not more, can be pruned: the first few reasons of the analysis."""
    reasons = list(dict.fromkeys(str(item.reason) for item in coupling.frozen))
    return "; ".join(reasons[:most]) if reasons else "the network has no weights with channels"
