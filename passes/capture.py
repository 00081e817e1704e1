"""Any nn.Module to a GraphModule that still trains, and whose structure a later pass can read and restate."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn

from passes.errors import CaptureError
from passes.replay import taken_as_it_is
from passes.symbolic import trace


def capture(model: nn.Module, example_inputs: Any = None, frontend: str = "auto") -> fx.GraphModule:
    """Capture `model` as a graph in which train() and eval() work as on the model, in the mode that it is in.

    `example_inputs` (a tensor, a tuple of arguments or a dict of keyword arguments; only shapes, types and
    structure are used) let control flow over shapes be followed and functions registered by
    `torch.fx.wrap` be traced through; without them such a function stays one opaque call.
    A GraphModule is taken as it is, only its attention leaves opened (see passes/attention.py).

    The result SHARES parameters and buffers with the model, as `torch.fx.symbolic_trace` does, but no module:
    what is set on it (a mode, an attribute, another parameter) does not reach the model, and names in its state_dict
    are those of the model. `gm.meta["frontend"]` says which front end was used, why, and what was specialised.

    Raises CaptureError, which names the line of the model that cannot be captured and what to do.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes an nn.Module or a GraphModule, not {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(model, fx.GraphModule):
        return taken_as_it_is(model, _by_name(model, example_inputs))
    return trace(model, _by_name(model, example_inputs))


def _by_name(model: nn.Module, example_inputs: Any) -> dict[str, Any] | None:
    """The example inputs under the names that forward gives them."""
    if example_inputs is None:
        return None
    args = () if isinstance(example_inputs, dict) else example_inputs
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    kwargs = example_inputs if isinstance(example_inputs, dict) else {}
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise CaptureError(f"the example inputs do not fit {type(model).__name__}.forward: {error}") from error
