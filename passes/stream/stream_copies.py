"""Copies of a user's module that an analysis may run: parts that no dispatch mode sees stand apart, paths are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from passes.errors import PassError
from passes.graph.emitted_layers import emit_layer, is_emitted, own_tensors
from passes.graph.left_behind import PLAIN_KINDS, Plain, plain_of_class
from passes.graph.module_copies import (
    OF_TORCH,
    PLAIN,
    Copies,
    Replace,
    copied_or_shared,
    is_plain_list,
    modules_of,
    owned_tensors,
)  # fmt: skip
from passes.process.torch_private import call_of, no_torch_dispatch, no_torch_function
from passes.stream.head_attention import is_torchs_attention, with_heads
from passes.stream.restated_calls import note_layer
from passes.stream.results import tensors_in


class CallStack:
    """The modules that are running, outermost first: their paths, and a number for each run of one.

    used: the ids of parameters in the order in which layers gave them to torch, as far as they are watched. begun: how
    many there were when each module that is running began.
    """

    def __init__(self) -> None:
        self.paths, self.runs = [""], [0]
        self.used, self.begun = list[int](), [0]
        self.emit: Callable[..., object] | None = (
            None  # makes one ATen call; None where layers are to run by themselves
        )
        self.changed: dict[type, bool] = {}  # which classes of layers are other than torch made them, in one run
        self._numbers = itertools.count(1)

    def enter(self, path: str) -> None:
        """A module begins to run."""
        self.paths.append(path)
        self.runs.append(next(self._numbers))
        self.begun.append(len(self.used))

    def leave(self) -> None:
        """It has returned, or raised."""
        self.paths.pop()
        self.runs.pop()
        self.begun.pop()

    def release(self, modules: Iterable[nn.Module]) -> None:
        """Have the modules of a copy say nothing any more: what they say it with refers to them in turn.

        Without these circles memory is given back at once, and not when the garbage collector has found them.
        """
        self.emit = None
        for module in modules:
            module.__dict__.pop("_call_impl", None)


class Opaque(nn.Module):
    """Stands for a scripted module: `run` is asked for its results."""

    def __init__(self, original: nn.Module, path: str, run: Callable[..., object]) -> None:
        super().__init__()
        self.__dict__["original"], self.path, self.run = original, path, run

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.run(self.path, self.original, args, kwargs)


def scripted_modules(root: nn.Module) -> dict[str, nn.Module]:
    """The outermost scripted modules by path. Raises PassError where the whole model is one."""
    if isinstance(root, torch.jit.ScriptModule):
        raise PassError(
            f"{type(root).__name__}: the model is a scripted module, whose code cannot be changed; "
            "pass the nn.Module that it was scripted from"
        )
    scripted = {path: part for path, part in modules_of(root).items() if isinstance(part, torch.jit.ScriptModule)}
    outermost: dict[str, nn.Module] = {}
    for path, part in scripted.items():
        if not any(path.startswith(f"{outer}.") for outer in outermost):
            outermost[path] = part
    return outermost


def stream_copy(
    root: nn.Module, scripted: Mapping[str, nn.Module], replace: Replace, run: Callable[..., object], stack: CallStack
) -> tuple[dict[str, nn.Module], Copies]:
    """The modules by path of a copy of `root` with each tensor replaced, which say in `stack` when they run.

    scripted: the scripted modules by path; `run` is called with (path, module, args, kwargs) in place of one.
    Attention of torch's class takes the form of `HeadAttention`.
    """
    opaque = {id(module): Opaque(module, path, run) for path, module in scripted.items()}
    copies = Copies(root, replace, opaque)
    modules = modules_of(copies.module(root))
    for path, module in modules.items():
        if isinstance(module, Opaque):
            continue
        if is_torchs_attention(module):
            with_heads(module)
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = False
        _follow(module, path, stack)
    return modules, copies


_Attributes = list[tuple[dict[str, Any], str, Any]]


class State:
    """What modules (by their paths) keep in their attributes, to be put back before each run of them."""

    def __init__(self, by_path: Mapping[str, nn.Module]) -> None:
        modules = list(dict.fromkeys(by_path.values()))
        held = [item for module in modules for item in (module.__dict__, *_registered(module))]
        self._kept = [(item, dict(item)) for item in held if item]
        self._empty = [item for item in held if not item]
        self._by_path, self._classes = by_path, {kind: plain_of_class(kind) for kind in set(map(type, modules))}
        mutable = [
            (module.__dict__, name, value)
            for module in modules
            for name, value in module.__dict__.items()
            if name not in OF_TORCH and type(value) not in PLAIN and _may_change(value)
        ]
        holds_others = any(not is_plain_list(value) for _, _, value in mutable)
        stay = (*modules, *(tensor for _, tensor in owned_tensors(by_path[""]))) if holds_others else ()
        self._memo: dict[int, Any] = {id(item): item for item in stay}
        self._mutable = self._copied(mutable)  # the first run changes what is there

    def restore(self) -> None:
        """Put all of it back."""
        for held in self._empty:
            if held:
                held.clear()
        for held, before in self._kept:
            held.clear()
            held.update(before)
        for attributes, name, value in self._copied(self._mutable):
            attributes[name] = value

    def changed(self) -> dict[str, Plain]:
        """The numbers, flags and texts that runs have changed, in modules or in their classes, as they are now."""
        found: dict[str, Plain] = {}
        classes = {kind: plain_of_class(kind) for kind in self._classes}
        kept = {id(held): before for held, before in self._kept}
        for path, module in self._by_path.items():
            kind, held = type(module), module.__dict__
            before = kept[id(held)]
            if not (_are_equal(held, before) and classes[kind] == self._classes[kind]):
                earlier, later = self._classes[kind] | before, classes[kind] | held
                for name, value in later.items():
                    known = type(value) in PLAIN_KINDS and type(earlier.get(name)) is type(value) and name != "training"
                    if known and value != earlier[name]:
                        found[f"{path}.{name}" if path else name] = value
        return found

    def kept(self) -> list[torch.Tensor]:
        """The tensors that runs have put into attributes, and into lists and objects there."""
        changed = [
            (held[name], before.get(name))
            for held, before in (*self._kept, *((held, {}) for held in self._empty))
            if not _are_equal(held, before)
            for name in held
            if held[name] is not before.get(name)
        ]
        changed += [(held.get(name), before) for held, name, before in self._mutable]
        found: list[torch.Tensor] = []
        for value, before in changed:
            earlier = set(map(id, tensors_in(before, caches=True)))
            found += [tensor for tensor in tensors_in(value, caches=True) if id(tensor) not in earlier]
        return found

    def _copied(self, items: _Attributes) -> _Attributes:
        memo = dict(self._memo)
        return [(attributes, name, copied_or_shared(value, memo)) for attributes, name, value in items]


_TABLES = tuple(name for name, held in nn.Module().__dict__.items() if isinstance(held, dict))
_tables_of = itemgetter(*_TABLES)


def _registered(module: nn.Module) -> Sequence[dict[Any, Any]]:
    """What torch keeps for a module: its parameters, children and hooks, which a program may register as it runs."""
    attributes = module.__dict__
    try:
        return _tables_of(attributes)
    except KeyError:  # of modules that torch.jit.trace made
        return [held for name in _TABLES if isinstance(held := attributes.get(name), dict)]


def _are_equal(held: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether equal values stand under the same names; the very same ones are not asked."""
    try:
        return held == before
    except Exception:  # other tensors: they do not say whether they are equal
        return False


def _may_change(value: object) -> bool:
    if type(value) is tuple and PLAIN.issuperset(map(type, value)):
        return False
    return not isinstance(value, (torch.Tensor, nn.Module, type, FunctionType, BuiltinFunctionType))


def _follow(module: nn.Module, path: str, stack: CallStack) -> None:
    """Have calls of `module` say when they begin and end; those of torch's layers are made without running them."""
    inner = call_of(type(module))
    module.__dict__["_compiled_call_impl"] = None

    def call(*args: object, **kwargs: object) -> Any:
        stack.enter(path)
        try:
            return inner(module, *args, **kwargs)
        finally:
            stack.leave()

    def call_layer(*args: object, **kwargs: object) -> Any:
        emit = stack.emit
        if emit is None or len(args) != 1 or kwargs:
            return call(*args, **kwargs)
        stack.enter(path)
        result: object = NotImplemented
        try:
            with no_torch_function(), no_torch_dispatch():
                result = emit_layer(module, args[0], emit, own_tensors(module), module.training, stack.changed)
        finally:
            stack.leave()
        if result is NotImplemented:
            return call(*args, **kwargs)
        note_layer(module)
        return result

    module.__dict__["_call_impl"] = call_layer if is_emitted(module) else call
