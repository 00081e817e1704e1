"""The second front end: torch.export, for models whose Python cannot be traced by torch.fx; and what it has given.

An exported graph has parameters as get_attr nodes and ATen calls, in the mode that the model is in. What export fixed
beyond that is freed where it can be: the guards and the module that refuses train() are left out; the leading
dimension is dynamic where export allows it.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from passes.errors import NotInAGraph
from passes.frontend.lower_attention import lowered
from passes.frontend.random_draws import DrawsWatched
from passes.frontend.refusals import refusal
from passes.frontend.unlift import plain_graph
from passes.graph.annotations import note
from passes.graph.lazy_codegen import any_names, graph_module
from passes.graph.shared_weights import attributes_restored, doubled
from passes.nested_values import tree_leaves_only
from passes.process.torch_patches import gradients_refused
from passes.process.torch_private import TreeCodeGen, codegen_of, hooks_of, input_tree, pytree

log = logging.getLogger(__name__)


@dataclass
class _Exported:
    """One exported graph in plain form, with the tensors that export stored under names of its own."""

    graph: fx.Graph
    constants: dict[str, Any]
    free: bool
    draws: DrawsWatched


def export(model: nn.Module, example: inspect.BoundArguments, why: str) -> fx.GraphModule:
    """Capture `model` on these example inputs by torch.export; `why` is the reason for this front end.

    Raises CaptureError with what torch.export says.
    """
    with attributes_restored(model), lowered(), any_names():
        exported = _exported(model, example)
    with attributes_restored(model):
        for name, value in exported.constants.items():
            setattr(model.get_submodule(_path(name)), name.rpartition(".")[2], value)
        gm = graph_module(doubled(model, exported.graph), exported.graph, type(model).__name__)
    leading = "free" if exported.free else "fixed to that of the example by torch.export"
    mode = f"torch.export captured it in {'train' if model.training else 'eval'} mode, which this graph stays in"
    said = [why, f"the leading dimension is {leading}", mode]
    gm.meta["frontend"] = {"which": "export", "why": "; ".join(said), "specialised": (mode,)}
    note(gm, specialised=(mode,))
    exported.draws.tell(gm)
    return gm


def _exported(model: nn.Module, example: inspect.BoundArguments) -> _Exported:
    """Export with a free leading dimension if that is possible."""
    args, kwargs = _at_least_two((example.args, example.kwargs))
    for shapes in (_dynamic_shapes(args, kwargs), None):
        draws = DrawsWatched(model)
        try:
            with _silent(), gradients_refused():
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises what the model's code raises, and much of its own
            if shapes is not None and not isinstance(error, NotInAGraph):
                log.debug("torch.export with a free leading dimension", exc_info=error)
                continue
            raise refusal(model, "cannot be captured by torch.export", error) from None
        draws.stop()
        source = program.module()
        _refuse_function_transforms(source, model)
        _refuse_buffers_of_another_size(source, model)
        graph = plain_graph(source, inspect.signature(model.forward), (args, kwargs))
        _name_as_the_model_does(graph, model)
        graph.eliminate_dead_code()
        return _Exported(graph, _constants(graph, source, model), _is_free(program), draws)
    raise AssertionError("the export with fixed sizes returns or raises")


def is_exported(model: fx.GraphModule) -> bool:
    """Whether it is what ``ExportedProgram.module()`` gives: a graph of flat values between checks of the inputs."""
    hooks, flat = hooks_of(model), isinstance(codegen_of(model.graph), TreeCodeGen)
    return flat and bool(hooks) and all(hook.__module__.startswith("torch.export") for hook in hooks)


def taken_from_export(model: fx.GraphModule) -> fx.GraphModule:
    """The graph of an exported module in plain form, over modules of its own that share their weights with it."""
    tree = input_tree(model)
    flat = pytree.tree_unflatten(range(tree.num_leaves), tree)
    graph = plain_graph(model, inspect.signature(model.forward), flat)
    graph.eliminate_dead_code()
    gm = graph_module(doubled(model, graph), graph, type(model).__name__)
    said = "torch.export fixed its mode, and every size that was not exported as a dynamic one"
    gm.meta["frontend"] = {"which": "given", "why": "the model is an exported module", "specialised": (said,)}
    note(gm, specialised=(said,))
    return gm


@contextmanager
def _silent() -> Iterator[None]:
    """What torch.export prints, logs and warns of (graphs of thousands of lines) goes to the debug log."""
    said = io.StringIO()
    loggers = [one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    handlers = {handler for one in loggers if one.name.split(".")[0] == "torch" for handler in one.handlers}

    def keep(record: logging.LogRecord) -> bool:
        said.write(f"{record.name}: {record.getMessage()}\n")
        return False

    for handler in handlers:
        handler.addFilter(keep)
    try:
        with warnings.catch_warnings(record=True) as warned, redirect_stderr(said), redirect_stdout(said):
            yield
        said.writelines(f"{warning.message}\n" for warning in warned)
    finally:
        for handler in handlers:
            handler.removeFilter(keep)
        if said.getvalue():
            log.debug("torch.export said:\n%s", said.getvalue())


def _refuse_function_transforms(source: fx.GraphModule, model: nn.Module) -> None:
    """torch.func leaves levels of its own in an exported graph, and tensors of a level that has ended."""
    for node in source.graph.nodes:
        if getattr(node.target, "__module__", "").startswith("torch._functorch"):
            error = NotInAGraph("it transforms functions (torch.func), which a graph of calls does not say")
            raise refusal(model, "cannot be captured by torch.export", error)


def _refuse_buffers_of_another_size(source: fx.GraphModule, model: nn.Module) -> None:
    """A buffer that forward replaces by one of another size is no memory, and export writes into the old one."""
    for node in source.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        buffer, value = node.args[:2]
        made = value.meta.get("val") if isinstance(value, fx.Node) else None
        if buffer.op != "get_attr" or not isinstance(made, torch.Tensor):
            continue
        held = operator.attrgetter(str(buffer.target))(source)
        fits = zip(reversed(made.shape), reversed(held.shape), strict=False)
        if made.dim() > held.dim() or not all(new in (1, old) for new, old in fits):
            sizes = f"{tuple(held.shape)} is replaced by one of size {tuple(made.shape)}"
            error = NotInAGraph(f"the buffer {buffer.target} of size {sizes}")
            raise refusal(model, "cannot be captured by torch.export", error)


def _at_least_two(inputs: object) -> Any:
    """torch.export takes a size of 1 for fixed: such a leading dimension is doubled."""
    if _leading(inputs) != 1:
        return inputs
    return pytree.tree_map(lambda leaf: torch.cat([leaf, leaf]) if _is_batched(leaf, 1) else leaf, inputs)


def _dynamic_shapes(args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    size = _leading((args, kwargs))
    shapes = pytree.tree_map(
        lambda leaf: {0: torch.export.Dim.AUTO} if _is_batched(leaf, size) else None, (args, kwargs)
    )
    return (*shapes[0], *shapes[1].values())


def _leading(inputs: object) -> int | None:
    return next((x.shape[0] for x in tree_leaves_only(torch.Tensor, inputs) if x.dim()), None)


def _is_batched(leaf: object, size: int | None) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _is_free(program: torch.export.ExportedProgram) -> bool:
    inputs = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    return any(isinstance(x, torch.Tensor) and x.dim() and isinstance(x.shape[0], torch.SymInt) for x in inputs)


def _name_as_the_model_does(graph: fx.Graph, model: nn.Module) -> None:
    """A tied parameter goes by the first of its names, as in symbolic tracing; export takes the last."""
    first = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = {name: first[id(tensor)] for name, tensor in every}
    for node in graph.find_nodes(op="get_attr"):
        node.target = names.get(str(node.target), str(node.target))


def _constants(graph: fx.Graph, source: nn.Module, model: nn.Module) -> dict[str, object]:
    """What the graph reads that the model does not have."""
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    known = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    return {name: getattr(source.get_submodule(_path(name)), name.rpartition(".")[2]) for name in sorted(names - known)}


def _path(name: str) -> str:
    return name.rpartition(".")[0]
