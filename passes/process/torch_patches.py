"""What of Python, of torch and of the model is replaced while a model is traced, or while its code is written.

All replacements of a trace belong to fx's patcher: they end with it, and where torch runs for itself within it, or a
module is imported for the first time, they are taken back for that time.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import keyword
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.fx.graph as fx_graph
import torch.utils.checkpoint
from torch import fx, nn
from torch.fx import _symbolic_trace

from passes.errors import CaptureError, NotInAGraph
from passes.process.state import exclusive
from passes.process.torch_private import BackwardHookFunction, call_of, hooks_of

originals_back = _symbolic_trace._maybe_revert_all_patches


class TracesModules(Protocol):
    """What the replacements ask of a tracer."""

    def class_of(self, obj: fx.Proxy) -> type: ...


@dataclass
class _Replaced:
    """`holder.name` is `new`, in the form of fx's patches; a module that lacks the name gets it for the while."""

    holder: object
    name: str
    new: object
    original: Any = field(init=False)

    def __post_init__(self) -> None:
        self.original = vars(self.holder).get(self.name, _replaced_nothing)

    def patch(self) -> None:
        setattr(self.holder, self.name, self.new)

    def revert(self) -> None:
        if self.original is _replaced_nothing:
            delattr(self.holder, self.name)
        else:
            setattr(self.holder, self.name, self.original)

    def __enter__(self) -> None:
        self.patch()

    def __exit__(self, *error: object) -> None:
        self.revert()


_replaced_nothing = object()


# Modules of torch that do a tracer's work: what these, and the tracer's own, ask of a proxy is meant of the proxy
# itself, and they ask more often than any model.
_OF_PROXIES = tuple(
    sys.modules[name]
    for name in (
        "torch.fx._symbolic_trace", "torch.fx.proxy", "torch.fx.graph", "torch.fx.node", "torch.utils._pytree",
        "torch._library.opaque_object",
    )
    if name in sys.modules
)  # fmt: skip


def replace_while_tracing(tracer: TracesModules, proxies: type[fx.Proxy]) -> None:
    """Make the replacements, within a trace of `tracer`, whose proxies are of this class; they end with the trace."""
    patcher = _symbolic_trace.CURRENT_PATCHER
    assert patcher is not None, "called by the function that fx traces"
    replaced: list[Any] = [
        _Replaced(torch.autograd.Function, "apply", classmethod(_applied)),
        *_checkpoints_refused(),
        _Replaced(nn.Module, "__setattr__", _keeping_tensors(proxies)),
        _Replaced(torch.autocast, "__init__", _refusing("torch.autocast")),
        _Replaced(torch.autograd.graph.saved_tensors_hooks, "__init__", _refusing("a hook on saved tensors")),
        _Replaced(sys.modules[type(tracer).__module__], "isinstance", isinstance),
        *(_Replaced(module, "isinstance", isinstance) for module in _OF_PROXIES),
        _Replaced(builtins, "isinstance", _telling_classes(tracer, proxies)),
        _Replaced(builtins, "__import__", _importing(builtins.__import__)),
        _Replaced(importlib, "import_module", _importing(importlib.import_module)),
    ]
    for one in replaced:
        one.patch()
        patcher.patches_made.append(one)


def _telling_classes(tracer: TracesModules, proxies: type[fx.Proxy]) -> Callable[[object, object], bool]:
    """`isinstance` for Python code: a proxy counts as what it stands for, where that is known.

    Checks in C++, which read memory by the answer, do not call it, and see the proxy.
    """
    original = builtins.isinstance

    def isinstance(obj: Any, kinds: Any) -> bool:
        found = original(obj, kinds)
        if found or not issubclass(type(obj), proxies):
            return found
        return issubclass(tracer.class_of(obj), kinds)

    return isinstance


def _keeping_tensors(proxies: type[fx.Proxy]) -> Callable[[nn.Module, str, object], None]:
    """Putting another tensor in the place of a buffer is refused: the graph would not contain it."""
    original = nn.Module.__setattr__

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        held = module.__dict__.get("_buffers", {}).get(name)
        if held is not None and issubclass(type(value), proxies):
            if value is getattr(module, name):  # buffer += 1, which has written into it
                return
            raise NotInAGraph(
                f"the buffer {name} is replaced, and torch.fx only writes down what is put into it (copy_)"
            )
        original(module, name, value)

    return set_attribute


def _refusing(what: str) -> Callable[..., None]:
    def init(self: object, *args: object, **kwargs: object) -> None:
        raise NotInAGraph(f"{what} holds for a region of the code, and torch.fx writes no regions down")

    return init


class _Applied:
    """`function.apply` under the name of the autograd.Function, so that generated code can call it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = function.__name__
        self.__module__ = function.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        return self.function.apply(*args, **kwargs)


_apply = torch.autograd.Function.__dict__["apply"]


def _applied(cls: object, *args: object, **kwargs: object) -> object:
    """A call of an autograd.Function on proxies is one node: traced through, it would lose its gradient."""
    proxy = next((arg for arg in args if isinstance(arg, fx.Proxy)), None)
    if proxy is None:
        return _apply.__get__(None, cls)(*args, **kwargs)
    functions = [arg for arg in args if callable(arg) and not isinstance(arg, (fx.Proxy, torch.Tensor))]
    if functions or cls is BackwardHookFunction:
        raise _refused(cls, "runs a part of the model, which the graph would not show")
    return proxy.tracer.create_proxy("call_function", _Applied(cls), args, kwargs)


_CHECKPOINT = "torch.utils.checkpoint runs a part of the model anew for its gradient, which no graph says"


def _refused(function: Any, why: str) -> NotInAGraph:
    if function is BackwardHookFunction:
        return NotInAGraph("a hook of a module changes gradients, which no graph says")
    if function.__module__ == "torch.utils.checkpoint":
        return NotInAGraph(_CHECKPOINT)
    return NotInAGraph(f"{function.__qualname__}, an autograd.Function, {why}")


def _checkpoints_refused() -> Iterator[_Replaced]:
    """The form of torch.utils.checkpoint that is no autograd.Function; torch 2.14 gave it another name."""

    def generator(*args: object, **kwargs: object) -> object:
        raise NotInAGraph(_CHECKPOINT)

    for name in list(vars(torch.utils.checkpoint)):
        if name.startswith("_checkpoint_without_reentrant_generator"):
            yield _Replaced(torch.utils.checkpoint, name, generator)


@contextmanager
def gradients_refused() -> Iterator[None]:
    """Inside, what makes gradients of its own raises NotInAGraph: torch.export would trace through and lose them."""

    def apply(cls: object, *args: object, **kwargs: object) -> object:
        raise _refused(cls, "has a gradient of its own, which torch.export loses")

    with ExitStack() as replaced:
        for one in (_Replaced(torch.autograd.Function, "apply", classmethod(apply)), *_checkpoints_refused()):
            replaced.enter_context(one)
        yield


def _importing(original: Callable[..., object]) -> Callable[..., object]:
    """Has a module that is imported within a trace run without the replacements: it may keep what it finds.

    torch._dynamo, first imported under them, breaks torch.compile and torch.export for the rest of the process.
    """
    tracing = threading.get_ident()

    def imported(name: str, *args: Any, **kwargs: Any) -> Any:
        # Taken back by another thread, they would be missing in the trace; taking them back for nothing takes time.
        if threading.get_ident() != tracing or (not kwargs and _is_loaded(name, *args)):
            return original(name, *args, **kwargs)
        with originals_back():
            return original(name, *args, **kwargs)

    return imported


def _is_loaded(name: str, _: object = None, __: object = None, names: Any = (), level: int = 0) -> bool:
    """Whether `from name import names` finds all its names loaded already."""
    module = None if level else sys.modules.get(name)
    return module is not None and all(one in vars(module) for one in names or ())


@contextmanager
def quiet_graphs() -> Iterator[None]:
    """Inside (or as a decorator), a GraphModule that fails prints nothing on stderr: its error is reported as others.

    For one who holds the lock of the process, as the next.
    """
    with _Replaced(fx.graph_module, "print", lambda *what, **where: None):
        yield


@contextmanager
def sizes_by_len() -> Iterator[None]:
    """Inside, `len` of a tensor is its first size as torch's modes answer it: Python's own gives a plain integer.

    For one who holds the lock of the process (`passes.process.state`).
    """
    original, thread = builtins.len, threading.get_ident()

    def length(of: Any, /) -> int:
        if isinstance(of, torch.Tensor) and threading.get_ident() == thread and of.dim():
            return of.shape[0]
        return original(of)

    with _Replaced(builtins, "len", length):
        yield


def root_function(root: nn.Module, name: str) -> FunctionType:
    """What a call of `root` runs, as the function that fx traces: its method `name`, between its hooks if it has some.

    Raises CaptureError where another object stands in the place of `root.forward`.
    """
    function = getattr(type(root), name)
    own = root.__dict__.get(name)
    if own is not None:
        if getattr(own, "__self__", None) is not root:
            kind = type(root).__name__
            raise CaptureError(f"{kind}.{name} was replaced by {own!r}; set a method bound to the module")
        function = own.__func__
    if not has_hooks(root):
        return function

    @functools.wraps(function)
    def between_hooks(self: nn.Module, *args: object, **kwargs: object) -> object:
        return call_of(nn.Module)(self, *args, **kwargs)

    return between_hooks  # type: ignore[return-value]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs more than its forward."""
    return bool(hooks_of(module))


@contextmanager
def any_names() -> Iterator[None]:
    """Inside, fx writes ``getattr(self, 'in')`` wherever ``self.in`` would not be read as it is meant."""
    with exclusive():
        original = fx_graph._format_target
        fx_graph._format_target = _attribute
        try:
            yield
        finally:
            fx_graph._format_target = original


def _attribute(base: str, target: str) -> str:
    for name in target.split("."):
        plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base
