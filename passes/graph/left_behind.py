"""What a cut copy of a module does not hold, or holds otherwise, as sentences: said before anything is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import torch
from torch import nn

from passes.graph.module_copies import modules_of
from passes.process.torch_private import has_tensor_hooks

Plain = bool | int | float | str
PLAIN_KINDS = frozenset((bool, int, float, str))


def left_behind(tensors: Sequence[tuple[str, torch.Tensor]]) -> list[str]:
    """What does not come along: hooks on gradients, memory that two tensors share, a gradient.

    tensors: of a module, by `owned_tensors`.
    """
    by_id = {id(tensor): (name, tensor) for name, tensor in reversed(tensors)}
    named = sorted(by_id.values(), key=itemgetter(0))
    found = []
    hooked = [name for name, tensor in named if has_tensor_hooks(tensor)]
    if hooked:
        found.append(f"hooks on the gradient of {_listed(hooked)} are left behind; register them on what is cut")
    computed = [name for name, tensor in named if tensor.grad_fn is not None]
    if computed:
        found.append(
            f"{_listed(computed)} was computed from parameters and has their gradient, which stays behind: a cut "
            "module holds its values alone"
        )
    for first, second in _sharing(named):
        found.append(
            f"{first} and {second} are two tensors in one memory, and are cut apart: training no longer changes both. "
            "Give both names the same Parameter, which stays one"
        )
    return found


def plain_state(module: nn.Module) -> dict[str, Plain]:
    """The numbers, flags and texts among the attributes of all modules and of their classes, by qualified names."""
    found: dict[str, Plain] = {}
    of_classes: dict[type, dict[str, Plain]] = {}
    for path, part in modules_of(module).items():
        kind, prefix = type(part), f"{path}." if path else ""
        if kind not in of_classes:
            of_classes[kind] = plain_of_class(kind)
        for name, value in of_classes[kind].items():
            found[prefix + name] = value
        for name, value in part.__dict__.items():
            if type(value) in PLAIN_KINDS and name != "training":
                found[prefix + name] = value
    return found


def plain_of_class(kind: type) -> dict[str, Plain]:
    """What the classes of a module hold of that, the base classes first; torch's own hold no state."""
    own = [base for base in reversed(kind.__mro__[:-1]) if not base.__module__.startswith("torch.")]
    plain = [(name, value) for base in own for name, value in vars(base).items() if type(value) in PLAIN_KINDS]
    return {name: value for name, value in plain if not name.startswith("__") and name != "training"}


def counted_between(before: Mapping[str, Plain], after: Mapping[str, Plain]) -> dict[str, Plain]:
    """The attributes that a call of forward changed, each with a value that they may have many calls later."""
    changed = {name: after[name] for name, value in before.items() if type(after.get(name)) is type(value)}
    return much_later({name: value for name, value in changed.items() if value != before[name]})


def much_later(values: Mapping[str, Plain]) -> dict[str, Plain]:
    """For attributes that a call of forward changed, values that they may have many calls later."""
    return {name: _much_later(value) for name, value in values.items()}


def set_state(module: nn.Module, values: Mapping[str, Plain]) -> None:
    """Give attributes these values, by their qualified names."""
    parts = modules_of(module)
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        setattr(parts[path], attribute, value)


def counts(name: str) -> str:
    """The sentence for an attribute that forward changes and on which depends what it does."""
    return f"forward changes {name}, and does otherwise once it has another value: what it does then was not looked at"


def _much_later(value: Plain) -> Plain:
    return not value if isinstance(value, bool) else f"{value}..." if isinstance(value, str) else value + 10_000


def _sharing(named: list[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, str]]:
    """Names of tensors that are not the same, and of which one lies in the memory of the other."""
    spans = []
    for name, tensor in named:
        if not tensor.is_meta and tensor.layout == torch.strided and tensor.numel():
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + reach * tensor.itemsize, name))
    spans.sort()
    for (device, _, end, name), (next_device, start, _, next_name) in zip(spans, spans[1:], strict=False):
        if device == next_device and start < end:
            yield min(name, next_name), max(name, next_name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
