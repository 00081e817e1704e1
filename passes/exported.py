"""The second front end: torch.export, for models whose Python cannot be traced by torch.fx.

An exported graph has parameters as get_attr nodes and ATen calls. What export fixed is freed where it can be: the model
is exported in both modes and the constants in which the two graphs differ follow the live mode; the guards and the
module that refuses train() are left out; the leading dimension is dynamic where export allows it.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from passes.attention import lowered
from passes.borrowing import borrowed, doubled
from passes.errors import CaptureError
from passes.generated import any_names, graph_module
from passes.modes import merge
from passes.plain import plain_graph

_ADD = torch.ops.aten.add_.Tensor
_COUNTER = "num_batches_tracked"


@dataclass
class _Exported:
    """One exported graph in plain form, with the tensors that export stored under names of its own.

    counters: the counters of batches that it counts up (taken out of the graph), and before which node it does.
    """

    graph: fx.Graph
    constants: dict[str, Any]
    free: bool
    counters: list[tuple[str, fx.Node]]


def export(model: nn.Module, example: inspect.BoundArguments, why: str) -> fx.GraphModule:
    """Capture `model` on these example inputs by torch.export; `why` is the reason for this front end.

    Raises CaptureError with what torch.export says.
    """
    with borrowed(model), lowered(), any_names():
        training = model.training
        exported = _exported(model, example, training)
        exported, told = _in_both_modes(model, example, exported, training)
    with borrowed(model):
        for name, value in exported.constants.items():
            setattr(model.get_submodule(_path(name)), name.rpartition(".")[2], value)
        gm = graph_module(doubled(model, exported.graph), exported.graph, type(model).__name__)
    leading = "free" if exported.free else "fixed to that of the example by torch.export"
    said = [why, f"the leading dimension is {leading}", *told]
    gm.meta["frontend"] = {"which": "export", "why": "; ".join(said), "specialised": ()}
    return gm


def _in_both_modes(
    model: nn.Module, example: inspect.BoundArguments, exported: _Exported, training: bool
) -> tuple[_Exported, list[str]]:
    """One graph for both modes if there is one, else that of the mode the model is in; and what is to be told."""
    try:
        other = _exported(model, example, not training)
    except CaptureError as error:
        told = [f"captured in {_form(training)} form only, since in the other mode {error}"]
    else:
        trained, evaluated = (exported, other) if training else (other, exported)
        if merge(trained.graph, evaluated.graph, model, (trained.constants, evaluated.constants)):
            _count(trained, live=True)
            return trained, []
        told = [f"captured in {_form(training)} form only, since the graphs of the two modes differ in structure"]
    _count(exported, live=False)
    return exported, told


def _form(training: bool) -> str:
    return "train" if training else "eval"


def _exported(model: nn.Module, example: inspect.BoundArguments, training: bool) -> _Exported:
    """Export in one mode, with a free leading dimension if that is possible."""
    model.train(training)
    args, kwargs = _at_least_two((example.args, example.kwargs))
    reasons: dict[str, None] = {}
    for shapes in (_dynamic_shapes(args, kwargs), None):
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises what the model's code raises, and much of its own
            lines = str(error).strip().splitlines() or [""]
            reasons[f"{type(error).__name__}: {lines[0]}"] = None
            continue
        source = program.module()
        graph = plain_graph(source, inspect.signature(model.forward), (args, kwargs))
        _name_as_the_model_does(graph, model)
        counters = _taken_counters(graph)
        graph.eliminate_dead_code()
        return _Exported(graph, _constants(graph, source, model), _is_free(program), counters)
    raise CaptureError(f"torch.export cannot capture {type(model).__name__}: {'; '.join(reasons)}")


def _at_least_two(inputs: Any) -> Any:
    """torch.export takes a size of 1 for fixed: such a leading dimension is doubled."""
    if _leading(inputs) != 1:
        return inputs
    return pytree.tree_map(lambda leaf: torch.cat([leaf, leaf]) if _is_batched(leaf, 1) else leaf, inputs)


def _dynamic_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    size = _leading((args, kwargs))
    shapes = pytree.tree_map(
        lambda leaf: {0: torch.export.Dim.AUTO} if _is_batched(leaf, size) else None, (args, kwargs)
    )
    return (*shapes[0], *shapes[1].values())


def _leading(inputs: Any) -> int | None:
    return next((x.shape[0] for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.dim()), None)


def _is_batched(leaf: Any, size: int | None) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _is_free(program: torch.export.ExportedProgram) -> bool:
    inputs = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    return any(isinstance(x, torch.Tensor) and x.dim() and isinstance(x.shape[0], torch.SymInt) for x in inputs)


def _taken_counters(graph: fx.Graph) -> list[tuple[str, fx.Node]]:
    """Take `num_batches_tracked += 1` out: only the graph of train mode has it, which would keep it from merging."""
    taken = []
    for node in reversed(graph.find_nodes(op="call_function", target=_ADD)):
        counter, one = node.args
        if not node.users and one == 1 and isinstance(counter, fx.Node) and str(counter.target).endswith(_COUNTER):
            taken.append((str(counter.target), node.next))
            graph.erase_node(node)
    return taken


def _count(exported: _Exported, live: bool) -> None:
    """Put the counting of batches back, by the live mode of each batch norm if it is to follow that."""
    graph = exported.graph
    for name, following in exported.counters:
        with graph.inserting_before(following):
            counter = graph.create_node("get_attr", name)
            one: Any = 1
            if live:
                path = name.rpartition(".")[0]
                flag = graph.create_node("get_attr", f"{path}.training" if path else "training")
                one = graph.call_function(operator.mul, (1, flag))
            graph.call_function(_ADD, (counter, one))


def _name_as_the_model_does(graph: fx.Graph, model: nn.Module) -> None:
    """A tied parameter goes by the first of its names, as in symbolic tracing; export takes the last."""
    first = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = {name: first[id(tensor)] for name, tensor in every}
    for node in graph.find_nodes(op="get_attr"):
        node.target = names.get(str(node.target), str(node.target))


def _constants(graph: fx.Graph, source: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What the graph reads that the model does not have."""
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    known = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    return {name: getattr(source.get_submodule(_path(name)), name.rpartition(".")[2]) for name in sorted(names - known)}


def _path(name: str) -> str:
    return name.rpartition(".")[0]
