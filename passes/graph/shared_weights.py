"""Using a model without leaving a trace in it: attributes put back, modules copied over shared weights."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from passes.graph.module_copies import modules_of
from passes.process.outside_state import refill
from passes.process.torch_private import buffers_of, children_of, transient_of

# Exact types: a subclass may refuse to be emptied (fx's immutable_list) or cost more than it is worth.
_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, set})


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Inside the block anything may be set on the model or its modules; on leaving, all is as it was.

    Attributes, registrations and the contents of lists, dicts and sets held as attributes are put back.
    Tensors are not copied: a block that writes into one in place has written into it.
    """
    saved = [
        (module, dict(module.__dict__), [(value, value.copy() if value else ()) for value in _containers(module)])
        for module in dict.fromkeys(modules_of(model).values())  # each once
    ]
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, contents in containers:
                if container or contents:
                    refill(container, contents)


def parametrizations_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Inside the block parametrized tensors of the module can be read, which runs code that may write into its state.

    A spectral norm makes a step of its power iteration each time in train mode.
    """
    # Parametrizations are a child; most layers have none, and to ask for an attribute that is missing takes long.
    return _put_back(module) if children_of(module) and is_parametrized(module) else nullcontext()


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    held = module.parametrizations
    assert isinstance(held, nn.Module), "it is parametrized"
    before = [(tensor, tensor.detach().clone()) for tensor in (*held.parameters(), *held.buffers())]
    with torch.no_grad():
        with attributes_restored(held):
            yield
        for tensor, values in before:
            if not tensor.is_meta:
                tensor.copy_(values)


def sharing_weights(module: nn.Module) -> nn.Module:
    """A second module (and second children) over the same parameters, buffers and settings.

    What is set on it (`train()`, `in_channels`, another parameter) does not reach the module.
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
            children[name] = sharing_weights(child)
    return double


def doubled(model: nn.Module, graph: fx.Graph) -> nn.Module:
    """What `graph` refers to of `model`: what it calls, sharing weights, in plain modules with modes of their own.

    As in torch's graph modules, a tensor that is no parameter becomes a buffer, and the order is that of the graph.
    """
    originals = modules_of(model)
    root = nn.Module()
    own = {"": root}
    called: set[str] = set()

    def holder(path: str) -> nn.Module | None:
        """The plain module at `path`; None where that lies in a module that is called."""
        if path in called:
            return None
        if path not in own:
            above, _, name = path.rpartition(".")
            parent = holder(above)
            if parent is None:
                return None
            children_of(parent)[name] = own[path] = nn.Module()
        return own[path]

    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target in called:
            continue
        target = str(node.target)
        path, _, name = target.rpartition(".")
        parent = holder(path)
        if parent is None:
            continue
        if node.op == "call_module":
            called.add(target)
            children_of(parent)[name] = sharing_weights(originals[target])
            continue
        value = getattr(originals[path], name)
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            parent.register_buffer(name, value)
        else:
            setattr(parent, name, value)
    for path, module in own.items():
        module.training = originals[path].training
        transient_of(module).update(transient_of(originals[path]) & set(buffers_of(module)))
    return root


def _containers(module: nn.Module) -> list[Any]:
    return [value for value in module.__dict__.values() if type(value) in _CONTAINERS]
