"""Using a model without leaving a trace in it: attributes put back, modules doubled over shared weights."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from passes.skeleton import modules_of, take_persistence

# Exact types: a subclass may refuse to be emptied (fx's immutable_list) or cost more than it is worth.
_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, set})


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Inside the block anything may be set on the model or its modules; on leaving, all is as it was.

    Attributes, registrations and the contents of lists, dicts and sets held as attributes are put back.
    Tensors are not copied: a block that writes into one in place has written into it.
    """
    saved = [
        (module, dict(module.__dict__), [(value, value.copy() if value else ()) for value in _containers(module)])
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, contents in containers:
                if container or contents:
                    _refill(container, contents)


def twin(module: nn.Module) -> nn.Module:
    """A second module (and second children) over the same parameters, buffers and settings.

    What is set on the twin (`train()`, `in_channels`, another parameter) does not reach the module.
    A ScriptModule cannot be doubled and is returned as it is.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    double = object.__new__(type(module))
    double.__dict__.update(
        {name: value.copy() if type(value) in _CONTAINERS else value for name, value in module.__dict__.items()}
    )
    children = double.__dict__["_modules"]
    for name, child in children.items():
        if child is not None:
            children[name] = twin(child)
    return double


def separate(gm: fx.GraphModule, model: nn.Module) -> None:
    """Give `gm`, just built from `model`, modules of its own, with the modes and registrations that `model` has."""
    originals, own = modules_of(model), modules_of(gm)
    for path, module in own.items():
        original = originals[path]
        if module is not original:  # what holds others, made with the graph module
            module.training = original.training
            take_persistence(module, original)
    for target in dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module"):
        parent, _, name = target.rpartition(".")
        registry = own[parent]._modules
        if registry[name] is originals[target]:
            registry[name] = twin(originals[target])


def _containers(module: nn.Module) -> list[Any]:
    return [value for value in module.__dict__.values() if type(value) in _CONTAINERS]


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(contents)
    else:
        container.update(contents)
