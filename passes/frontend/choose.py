"""A module to a GraphModule that computes the same, and whose structure a later pass can read and restate."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import fx, nn

from passes.arguments import got
from passes.errors import CaptureError
from passes.frontend.exported_program import export, is_exported, taken_from_export
from passes.frontend.fidelity import compare_with_module
from passes.frontend.refusals import both
from passes.frontend.retrace import taken_as_it_is
from passes.frontend.symbolic_trace import trace
from passes.graph.given_networks import given
from passes.process.state import leaves_no_trace
from passes.process.torch_private import buffers_of, children_of, parameters_of
from passes.stream.restated_calls import RestatedForward

FRONTENDS = ("auto", "fx", "export")


@leaves_no_trace
def capture(model: nn.Module, example_inputs: object = None, frontend: str = "auto") -> fx.GraphModule:
    """Capture `model` as a graph, in the mode that it is in.

    train() and eval() work as on the model where it hands its mode on to layers and functions, or branches on it in a
    module or function without weights; where it branches otherwise, and in a graph by torch.export, the mode is fixed.
    `example_inputs` (a tensor, a tuple of arguments or a dict of keyword arguments; only shapes, types and
    structure are used) let control flow over shapes be followed and functions registered by
    `torch.fx.wrap` be traced through; without them such a function stays one opaque call.
    `frontend`: "fx" traces symbolically, "export" uses torch.export (ATen calls; needs example inputs), "auto" takes
    the first and, where that fails, the second. A GraphModule is taken as it is, only its attention leaves
    opened (see passes/frontend/lower_attention.py); so is what ``ExportedProgram.module()`` gives, without its checks
    of the inputs.

    The result SHARES parameters and buffers with the model, as `torch.fx.symbolic_trace` does, but no module:
    what is set on it (a mode, an attribute, another parameter) does not reach the model, and names in its state_dict
    are those of the model. `gm.meta["frontend"]` says which front end was used, why, and what was specialised. Given
    example inputs with values, the graph is compared with the model first (see passes/frontend/fidelity.py).

    Refused is what a graph cannot say: regions under torch.autocast (torch.export can), torch.utils.checkpoint,
    function transforms, values that Python asks for. `couple` and fxprune's netadapt take the module itself, without
    a graph.

    Raises CaptureError, which names the line of the model that cannot be captured and what to do.
    """
    if not isinstance(frontend, str) or frontend not in FRONTENDS:
        raise CaptureError(f"frontend is {got(frontend)}; it can be one of {', '.join(FRONTENDS)}")
    if not isinstance(model, nn.Module):
        way = "; pass program.module()" if isinstance(model, torch.export.ExportedProgram) else ""
        raise CaptureError(f"capture takes an nn.Module or a GraphModule, not {type(model).__name__}{way}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"capture: {type(model).__name__} is a scripted module, whose code is no Python; pass the nn.Module that "
            "it was made from"
        )
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    modules = given(model, "capture", CaptureError)
    _names_are_free(model)
    example = _bound(model, example_inputs)
    inputs = None if example is None else dict(example.arguments)
    gm = _captured(model, modules, example, inputs, frontend)
    compare_with_module(gm, model, inputs)
    return gm


def _captured(
    model: nn.Module, modules: Mapping[str, nn.Module], example: inspect.BoundArguments | None,
    inputs: dict[str, object] | None, frontend: str,
) -> fx.GraphModule:  # fmt: skip
    if isinstance(model, fx.GraphModule):
        if is_exported(model):
            return taken_from_export(model)
        if frontend != "export":
            return taken_as_it_is(model, inputs)
    if frontend == "export":
        return export(model, _needed(example), "asked for")
    try:
        _written_sizes_hold(modules)
        return trace(model, inputs)
    except CaptureError as error:
        if frontend == "fx" or example is None:
            raise
        return _exported_instead(model, example, error)


def _names_are_free(model: nn.Module) -> None:
    """CaptureError where the model holds something by a name that a graph module has for itself."""
    if isinstance(model, fx.GraphModule):
        return
    held = [name for kept in (parameters_of(model), buffers_of(model), children_of(model)) for name in kept]
    taken = [name for name in held if name in _TAKEN]
    if taken:
        raise CaptureError(
            f"{type(model).__name__} holds {taken[0]!r}, a name that torch.fx.GraphModule has for itself: the graph "
            "would read its own instead",
            ["wrap the model in a module that calls it", "couple and netadapt take the module itself, without a graph"],
        )


# What a graph module has, and a plain one has not.
_TAKEN = frozenset(dir(fx.GraphModule)) - frozenset(dir(nn.Module)) | {"_graph", "_code", "meta"}


def _written_sizes_hold(modules: Mapping[str, nn.Module]) -> None:
    """CaptureError where a plan replaced sizes that the program states: torch.fx reads them as they are written."""
    for name, part in modules.items():
        if isinstance(part.__dict__.get("forward"), RestatedForward):
            raise CaptureError(
                f"{name or type(part).__name__}: sizes that its program states were replaced by pruning, which "
                'torch.fx does not see; use frontend="export"'
            )


def _exported_instead(model: nn.Module, example: inspect.BoundArguments, error: CaptureError) -> fx.GraphModule:
    try:
        return export(model, example, f"torch.fx could not: {error.found}")
    except CaptureError as second:
        raise both(error, second) from None


def _needed(example: inspect.BoundArguments | None) -> inspect.BoundArguments:
    if example is None:
        raise CaptureError('frontend="export" runs the model: give example_inputs')
    return example


def _bound(model: nn.Module, example_inputs: object) -> inspect.BoundArguments | None:
    """The example inputs as forward takes them."""
    if example_inputs is None:
        return None
    args = () if isinstance(example_inputs, dict) else example_inputs
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    kwargs = example_inputs if isinstance(example_inputs, dict) else {}
    try:
        return inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from error
