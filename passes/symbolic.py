"""The first front end: symbolic tracing, repeated until what can stay switchable or transparent does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import fx, nn
from torch.fx import _symbolic_trace

from passes.attention import lowered
from passes.borrowing import borrowed, separate
from passes.errors import CaptureError
from passes.tracing import Note, Tracer, Unresolved, describe_line, is_user_file


def trace(model: nn.Module, inputs: dict[str, Any] | None) -> fx.GraphModule:
    """Trace `model`; `inputs` are example values by the names of forward's parameters, None for none.

    Traced again, with more leaves, where a small module or a plain function turned out to branch on the mode: inside
    a leaf the branch stays live. With example inputs, functions registered by `torch.fx.wrap` are traced
    through, except those that cannot be.
    """
    leaves: frozenset[str] = frozenset()
    functions: tuple[Callable[..., Any], ...] = ()
    opaque: frozenset[FunctionType] = frozenset()
    while True:
        tracer = Tracer(inputs, leaves, functions)
        with borrowed(model), lowered(), _wrapped_functions_open(opaque, inputs is not None) as opened:
            try:
                graph = tracer.trace(model)
            except Exception as error:  # user code may raise anything when it meets a proxy
                stuck = _innermost(error, opened)
                if stuck is None:
                    raise _capture_error(error, tracer, model) from error
                opaque |= {stuck}
                continue
            more_leaves = _live_leaves(tracer.notes, model) - leaves
            more_functions = tuple(f for f in _live_functions(tracer.notes) if f not in functions)
            if not more_leaves and not more_functions:
                gm = fx.GraphModule(model, graph, type(model).__name__)
                separate(gm, model)
                break
            leaves, functions = leaves | more_leaves, functions + more_functions
    gm.meta["frontend"] = {"which": "fx", "why": _why(tracer, inputs), "specialised": tuple(tracer.notes)}
    return gm


@contextmanager
def _wrapped_functions_open(opaque: frozenset[FunctionType], do: bool) -> Iterator[list[FunctionType]]:
    """Inside, functions that were registered by torch.fx.wrap are traced through, but for those in `opaque`."""
    table = _symbolic_trace._wrapped_fns_to_patch
    registered = dict(table)
    opened: list[FunctionType] = []
    for key, namespace in registered.items() if do else ():
        function = namespace.get(key[1])
        if isinstance(function, FunctionType) and function not in opaque and _is_users(function):
            opened.append(function)
            del table[key]
    try:
        yield opened
    finally:
        table.clear()
        table.update(registered)


def _is_users(function: FunctionType) -> bool:
    return is_user_file(function.__code__.co_filename)


def _innermost(error: BaseException, opened: list[FunctionType]) -> FunctionType | None:
    """The deepest of the opened functions in which the error arose."""
    by_code = {function.__code__: function for function in opened}
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((by_code[code] for code in reversed(frames) if code in by_code), None)


def _live_leaves(notes: list[Note], model: nn.Module) -> frozenset[str]:
    """Modules that branched on the mode and can be leaves: nothing that could be pruned apart is inside."""
    paths = {note.module for note in notes if note.kind == "mode" and note.function is None and note.module}
    return frozenset(
        path for path in paths if not any(_weighted(child) for child in model.get_submodule(path).children())
    )


def _weighted(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _live_functions(notes: list[Note]) -> list[Callable[..., Any]]:
    return list(dict.fromkeys(note.function for note in notes if note.kind == "mode" and note.function is not None))


def _why(tracer: Tracer, inputs: dict[str, Any] | None) -> str:
    if tracer.resolved:
        return "torch.fx traced it, with control flow over shapes followed for the example inputs"
    return "torch.fx traced it"


def _capture_error(error: Exception, tracer: Tracer, model: nn.Module) -> CaptureError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)]
    place = describe_line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name) if frames else "its own code"
    module = next(reversed(tracer.module_stack.values()))[0] if tracer.module_stack else ""
    inside = f" (module {module})" if module else ""
    advice = (
        'give example_inputs, so that control flow over shapes can be followed; or use frontend="export"'
        if tracer.inputs is None
        else "if it depends on the values of tensors, move it into a function registered by torch.fx.wrap; "
        'or use frontend="export"'
    )
    what = (
        "control flow on a value that is not known while tracing"
        if isinstance(error, Unresolved)
        else type(error).__name__
    )
    return CaptureError(f"{type(model).__name__} cannot be traced at {place}{inside}: {what} ({error}); {advice}")
