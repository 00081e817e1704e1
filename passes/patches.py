"""What of torch, and of the model, is replaced while the model is traced, each for the time of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from passes.errors import CaptureError


@contextmanager
def buffers_recorded(assign: Callable[[nn.Module, str, fx.Proxy], None]) -> Iterator[None]:
    """Inside, setting a buffer to a proxy calls `assign`; torch alone refuses it or forgets the buffer."""
    original = nn.Module.__setattr__

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and module.__dict__.get("_buffers", {}).get(name) is not None:
            assign(module, name, value)
        else:
            original(module, name, value)

    nn.Module.__setattr__ = set_attribute  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]


@contextmanager
def autocast_told(resolve: Callable[[fx.Proxy], Any]) -> Iterator[None]:
    """Inside, `torch.autocast(x.device.type)` gets the name itself where that is a proxy."""
    original = torch.autocast.__init__

    def told(self: torch.autocast, *args: Any, **kwargs: Any) -> None:
        args = tuple(resolve(arg) if isinstance(arg, fx.Proxy) else arg for arg in args)
        kwargs = {name: resolve(arg) if isinstance(arg, fx.Proxy) else arg for name, arg in kwargs.items()}
        original(self, *args, **kwargs)

    torch.autocast.__init__ = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


@contextmanager
def own_forward(root: nn.Module) -> Iterator[None]:
    """Inside, a method that was set as `root.forward` is the forward of its class, which is where fx looks."""
    kind, forward = type(root), root.__dict__.get("forward")
    if forward is None:
        yield
        return
    if getattr(forward, "__self__", None) is not root:
        raise CaptureError(f"{kind.__name__}.forward was replaced by {forward!r}; set a method bound to the module")
    root.__class__ = type(kind.__name__, (kind,), {"forward": forward.__func__})  # type: ignore[assignment]
    try:
        yield
    finally:
        root.__class__ = kind  # type: ignore[assignment]


class _Applied:
    """`function.apply` under the name of the autograd.Function, so that generated code can call it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = function.__name__
        self.__module__ = function.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)


@contextmanager
def functions_recorded() -> Iterator[None]:
    """Inside, a call of an autograd.Function on proxies is one node: traced through, it would lose its gradient."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = next((arg for arg in args if isinstance(arg, fx.Proxy)), None)
        if proxy is None:
            return original.__get__(None, cls)(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", _Applied(cls), args, kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
