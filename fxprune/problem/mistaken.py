"""What was handed in place of a model or of example inputs, and what to do about it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.io.checkpoint import Values
from passes.arguments import got
from passes.graph.module_copies import owned_tensors

log = logging.getLogger(__name__)


def no_model(found: object, who: str = "netadapt") -> InputError:
    """The error for what is no module."""
    if inspect.isclass(found):
        way = f"make one of it: {found.__name__}(...)"
    elif isinstance(found, str | os.PathLike):
        way = "a file holds weights, not code: build the network, and load them into it"
    elif isinstance(found, Mapping):
        way = "weights alone cannot be run: build the network, and call its load_state_dict with them"
    elif isinstance(found, torch.export.ExportedProgram):
        way = "pass program.module()"
    elif isinstance(found, list | tuple) and len(found) and all(isinstance(item, nn.Module) for item in found):
        way = "pass one of them, or nn.ModuleList in a module that runs them all"
    elif callable(found):
        way = "call it, and pass the network that it returns"
    else:
        way = "pass the network itself"
    return InputError(f"{who}: got {got(found)}; expected a torch.nn.Module or a torch.fx.GraphModule. To do: {way}.")


def of_inputs(found: object) -> str:
    """What to do about inputs that a network does not take, where that is known; else ""."""
    if isinstance(found, torch.utils.data.DataLoader | torch.utils.data.Dataset):
        return "example_inputs is a whole data set: pass one batch of inputs without labels, next(iter(loader))[0]"
    values = tuple(found.values()) if isinstance(found, Mapping) else found
    values = values if isinstance(values, tuple | list) else (values,)
    if values and all(isinstance(value, int) for value in values):
        sizes = ", ".join(map(str, values))
        return f"example_inputs is a shape, and a tensor of it is asked for: torch.randn({sizes})"
    if any(type(value).__module__.partition(".")[0] == "numpy" for value in values):
        return "example_inputs holds arrays of numpy: pass torch.from_numpy(...)"
    if len(values) == 2 and isinstance(values[1], torch.Tensor) and not values[1].is_floating_point():
        return "if the second are labels, pass the inputs alone"
    return ""


def check_call(name: str, function: Callable[..., object], call: str, arguments: int) -> None:
    """Refuse a function that cannot be called with so many arguments, before anything is trained."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError as error:
        raise InputError(f"netadapt: {name} is called as {call}, and this function is not: {error}.") from None
    except ValueError:  # a function in C that does not say what it takes
        return


def check_weights(network: nn.Module, *needing: object) -> None:
    """Refuse to run a network that is on the meta device; without data, say how its units are ranked."""
    without = [name for name, tensor in network.named_parameters() if tensor.is_meta]
    if not without:
        return
    if any(item is not None for item in needing):
        raise InputError(
            f"netadapt: the weights are on the meta device ({without[0]}), so there are none, and nothing can be run; "
            "call model.to_empty(device='cpu'), and load them. Or leave train, evaluate and calibration out."
        )
    if without[0] not in Values(network):
        log.warning("%s is on the meta device: all units count alike; checkpoint=FOLDER ranks them", without[0])


def check_stored(network: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint beside other weights of the network's own: the one would rank units, and the other be cut.

    A network of which some tensors are on the meta device was made without weights.
    """
    own, values = dict(owned_tensors(network)), Values(network)
    if any(own[name].is_meta for name in network.state_dict() if name in own):
        return
    for name, tensor in own.items():
        if not torch.equal(values[name].to(tensor), tensor):
            raise InputError(
                f"netadapt: checkpoint={os.fspath(folder)!r} holds the weights of a model that was made without any, "
                f"and this model has others of its own: {name} differs from the folder's. Make the model under "
                "fxprune.empty_weights(), or load the folder's weights into it first (model.load_state_dict); or leave "
                "checkpoint out, and the model's own weights are searched."
            )
