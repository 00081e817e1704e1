"""A forward that a framework put around a module's own: mixed precision (Accelerate's, say) leaves one there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

_KEPT = ("_original_forward", "_old_forward")  # where Accelerate keeps the one that it wraps

REMEDY = (
    "take what wraps it off at the end of `train` (of Accelerate: "
    "accelerator.unwrap_model(model, keep_fp32_wrapper=False))"
)
"""What to do about a forward that is another one."""


@contextmanager
def own_forwards(network: nn.Module, before: nn.Module) -> Iterator[None]:
    """Inside, modules of the network run the forward that they had in `before`, a copy of the network, again.

    Put aside is a forward that was set on a module and keeps the earlier one, as ``__wrapped__`` or beside it. One that
    keeps none, or one of something else, stays where it is.
    """
    known = dict(before.named_modules(remove_duplicate=False))
    aside: list[tuple[dict[str, Any], object]] = []
    for path, module in network.named_modules():
        held = vars(module)
        if "forward" not in held or path not in known or isinstance(module, torch.jit.ScriptModule):
            continue  # nobody puts a forward around a scripted module's own
        earlier = vars(known[path]).get("forward")
        function = _function(type(module).forward if earlier is None else earlier)
        if _function(held["forward"]) is function or not any(kept is function for kept in _kept_by(module)):
            continue
        aside.append((held, held["forward"]))
        if earlier is None:
            del held["forward"]
        else:
            held["forward"] = MethodType(function, module) if isinstance(earlier, MethodType) else function
    try:
        yield
    finally:
        for held, forward in aside:
            held["forward"] = forward


def _kept_by(module: nn.Module) -> Iterator[object]:
    """The functions that a forward set on a module wraps, at any depth, and those that are kept beside it."""
    held = vars(module)
    waiting, seen = [held["forward"], *(held.get(name) for name in _KEPT)], set()
    while waiting:
        forward = waiting.pop()
        function = _function(forward)
        if forward is None or id(function) in seen or getattr(forward, "__self__", module) is not module:
            continue
        seen.add(id(function))
        yield function
        waiting.append(getattr(forward, "__wrapped__", None))


def _function(forward: Any) -> Callable[..., object]:
    """The function of a method, or what it is otherwise."""
    function: Callable[..., object] = getattr(forward, "__func__", forward)
    return function
