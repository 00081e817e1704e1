"""The first front end: symbolic tracing, repeated until what can stay switchable or transparent does."""

from __future__ import annotations

import logging
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import fx, nn

from passes.errors import CaptureError
from passes.frontend.callers import describe_line, is_user_file
from passes.frontend.lower_attention import lowered
from passes.frontend.random_draws import DrawsWatched
from passes.frontend.refusals import refusal
from passes.frontend.tracer import Note, Tracer, Unresolved
from passes.graph.annotations import note
from passes.graph.lazy_codegen import graph_module
from passes.graph.shared_weights import attributes_restored, doubled
from passes.process.garbage import collector_paused
from passes.process.torch_private import OpOverload, schema_of, wrapped_functions

log = logging.getLogger(__name__)


@collector_paused()
def trace(model: nn.Module, inputs: dict[str, object] | None) -> fx.GraphModule:
    """Trace `model`; `inputs` are example values by the names of forward's parameters, None for none.

    Traced again, with more leaves, where a small module or a plain function turned out to branch on the mode: inside
    a leaf the branch stays live. Other branches are followed in the mode that the model is in. With example
    inputs, functions registered by `torch.fx.wrap` are traced through, except those that cannot be.
    """
    leaves: frozenset[str] = frozenset()
    functions: tuple[Callable[..., object], ...] = ()
    opaque: frozenset[FunctionType] = frozenset()
    while True:
        tracer, draws = Tracer(inputs, leaves, functions), DrawsWatched(model)
        with attributes_restored(model), lowered(), _wrapped_functions_open(opaque, inputs is not None) as opened:
            try:
                graph = tracer.trace(model)
            except Exception as error:  # user code may raise anything when it gets a proxy
                stuck = _innermost(error, opened)
                if stuck is None:
                    raise _capture_error(error, tracer, model) from None
                opaque |= {stuck}
                continue
            draws.stop()
            more_leaves = _live_leaves(tracer.notes, model) - leaves
            more_functions = tuple(f for f in _live_functions(tracer.notes) if f not in functions)
            if more_leaves or more_functions:
                leaves, functions = leaves | more_leaves, functions + more_functions
                continue
            notes = _without_idle_modes(graph, tracer, model, opaque)
            _drop_idle_queries(graph)
            _keep_side_effects(graph)
            gm = graph_module(doubled(model, graph), graph, type(model).__name__)
            gm.meta["frontend"] = {"which": "fx", "why": _why(notes), "specialised": _told(notes)}
            note(gm, specialised=_sentences(notes, model.training))
            draws.tell(gm)
            return gm


def _without_idle_modes(
    graph: fx.Graph, tracer: Tracer, model: nn.Module, opaque: frozenset[FunctionType]
) -> tuple[Note, ...]:
    """What was decided; not the modes where the other mode comes to the same graph (a dropout of nothing)."""
    notes = tuple(tracer.notes)
    if not any(one.kind == "mode" for one in notes):
        return notes
    other = Tracer(tracer.inputs, tracer.leaves, tracer.functions, flipped=True)
    with attributes_restored(model), _wrapped_functions_open(opaque, tracer.inputs is not None):
        try:
            same = str(other.trace(model)) == str(graph)
        except Exception:  # user code in a mode that nobody asked for
            log.debug("%s cannot be traced in the other mode", type(model).__name__, exc_info=True)
            return notes
    return tuple(one for one in notes if one.kind != "mode") if same else notes


def _drop_idle_queries(graph: fx.Graph) -> None:
    """Erase questions about sizes, and the arithmetic on them, whose answers only control flow used."""
    for node in reversed(graph.nodes):
        function = node.op == "call_function" and (node.target is getattr or node.target in _PURE)
        method = node.op == "call_method" and node.target in ("size", "dim", "numel", "ndimension")
        if not node.users and (function or method or node.op == "get_attr"):
            graph.erase_node(node)


def _keep_side_effects(graph: fx.Graph) -> None:
    """Let dead-code elimination, which takes methods for pure, keep an in-place one whose result is unused."""
    for node in graph.find_nodes(op="call_method"):
        name = str(node.target)
        if node.users or not name.endswith("_") or name.endswith("__"):
            continue
        packet = getattr(torch.ops.aten, name, None)
        overloads = [getattr(packet, kind) for kind in packet.overloads()] if packet is not None else []
        found = next((overload for overload in overloads if _takes(overload, node.args, node.kwargs)), None)
        if found is not None:
            with graph.inserting_before(node):
                graph.call_function(found, node.args, node.kwargs).meta.update(node.meta)
            graph.erase_node(node)


def _takes(overload: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether an overload takes these arguments: tensors are nodes, and what is no node is a number or a text."""
    declared = schema_of(overload).arguments
    left = declared[len(args) :]
    given = [*zip(declared, args, strict=False), *((one, kwargs[one.name]) for one in left if one.name in kwargs)]
    return (
        len(given) == len(args) + len(kwargs)
        and all(one.has_default_value() or one.name in kwargs for one in left)
        and all(isinstance(value, fx.Node) == (str(one.type) in ("Tensor", "Optional[Tensor]")) for one, value in given)
    )


_PURE = {
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.getitem),
    *(operator.and_, operator.or_, operator.not_, operator.is_, operator.is_not),
}


@contextmanager
def _wrapped_functions_open(opaque: frozenset[FunctionType], do: bool) -> Iterator[list[FunctionType]]:
    """Inside, functions that were registered by torch.fx.wrap are traced through, but for those in `opaque`."""
    table = wrapped_functions()
    opened: list[FunctionType] = []
    removed: dict[tuple[int, str], dict[str, object]] = {}
    for key, namespace in dict(table).items() if do else ():
        function = namespace.get(key[1])
        if isinstance(function, FunctionType) and function not in opaque and _is_users(function):
            opened.append(function)
            removed[key] = table.pop(key)
    try:
        yield opened
    finally:
        table.update(removed)


def _is_users(function: FunctionType) -> bool:
    return is_user_file(function.__code__.co_filename)


def _innermost(error: BaseException, opened: list[FunctionType]) -> FunctionType | None:
    """The deepest of the opened functions in which the error arose."""
    by_code = {function.__code__: function for function in opened}
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((by_code[code] for code in reversed(frames) if code in by_code), None)


def _live_leaves(notes: Iterable[Note], model: nn.Module) -> frozenset[str]:
    """Modules that branched on the mode and can be leaves: nothing that could be pruned apart is inside."""
    paths = {note.module for note in notes if note.kind == "mode" and note.function is None and note.module}
    return frozenset(
        path for path in paths if not any(_weighted(child) for child in model.get_submodule(path).children())
    )


def _weighted(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _live_functions(notes: Iterable[Note]) -> list[Callable[..., object]]:
    return list(dict.fromkeys(note.function for note in notes if note.kind == "mode" and note.function is not None))


def _why(notes: tuple[Note, ...]) -> str:
    texts = {
        "shape": "control flow over shapes was followed for the example inputs",
        "batch": "it decided by the leading dimension of the inputs, which is therefore fixed",
        "value": "it decided by what its buffers hold",
        "mode": "it branches on its mode, and only that which it was in was captured",
    }
    kinds = {note.kind for note in notes}
    return "; ".join(["torch.fx traced it", *(text for kind, text in texts.items() if kind in kinds)])


def _told(notes: Iterable[Note]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{note.kind}: {note.source}" for note in notes))


def _sentences(notes: Iterable[Note], training: bool) -> tuple[str, ...]:
    """What the graph computes for one case only; decisions by shapes are the example's, as in every analysis."""
    texts = {
        "mode": f"what {'train' if training else 'eval'} mode does was captured, whatever mode is set",
        "batch": "the leading dimension is that of the example",
        "value": "what a buffer or parameter holds decided",
    }
    return tuple(f"{texts[one.kind]}: {one.source}" for one in notes if one.kind in texts)


def _capture_error(error: Exception, tracer: Tracer, model: nn.Module) -> CaptureError:
    """One paragraph for what user code, torch.fx or this file raised while `model` was traced."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)]
    place = describe_line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name) if frames else "its own code"
    module = next(reversed(tracer.module_stack.values()))[0] if tracer.module_stack else ""
    inside = f" (module {module})" if module else ""
    what = "control flow on a value that is not known while tracing" if isinstance(error, Unresolved) else None
    return refusal(model, f"cannot be traced at {place}{inside}", error, what, examples=tracer.inputs is not None)
