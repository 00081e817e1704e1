"""Sizes that are written in a module's program, replaced where the program calls torch: no source is changed.

``x.view(n, 3, 8, 4)``, ``x.chunk(2, 1)``, ``torch.zeros(n, 16)`` and the default scale of attention state sizes that no
attribute holds. A module whose units were removed gets a forward that runs its class's own, and replaces those
arguments of those calls. The module keeps its class; the replacements are plain data, which copies and pickles keep.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType, MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, resolve_name

from passes.errors import SizeError
from passes.process.source_lines import OWN_FILES
from passes.process.torch_private import (
    CHECKPOINTING,
    function_modes,
    is_symbolic_trace_of_root,
    no_dispatch_modes,
    not_compiled,
    parameters_of,
    pytree,
)
from passes.stream.replicas import called_module

Position = tuple[str | int, ...]
SIZES: Position = ("sizes",)  # of a call that splits its first argument

Line = tuple[str, str, int]
"""A function and the line that calls it: the name of the code, and the line below its head."""

Place = tuple[str | None, int]
"""Which call of a line: behind the use of which layer's parameters, and how many such calls came before it."""


@dataclass(frozen=True)
class Site:
    """One call in a module's program: the function, the line below the head of the code that calls it, which time.

    after: the layer, by its path from the module, whose parameters torch was given last before the call, within one run
    of the module's forward; None: of none. times: how often that line had called the function before, since then. So
    a loop that skips layers, turns back or is left early finds the calls of each layer again. methods: those of the
    module that were running then, which may be called by themselves as well; known: the places of all calls of the line
    that were seen. Neither makes a difference.
    """

    function: str
    code: str
    line: int
    times: int = 0
    after: str | None = None
    methods: tuple[str, ...] = field(default=(), compare=False)
    known: tuple[Place, ...] = field(default=(), compare=False)

    @property
    def line_of_code(self) -> Line:
        """What all calls of a loop have in common."""
        return self.function, self.code, self.line

    @property
    def place(self) -> Place:
        return self.after, self.times


@dataclass(frozen=True)
class Restated:
    """What a call is given instead: `value`, at `position`, which leads to the argument, ``(1, 2)`` or ``("scale",)``.

    The position `SIZES` says that the call splits its first argument: into pieces of these sizes.
    ratio: where the argument is a size, the new and the old length of what is pruned of it: ``n * heads`` is scaled, so
    that it may grow with the inputs. before: how long that was before anything was removed.
    """

    site: Site
    position: Position
    value: Any
    ratio: tuple[int, int] | None = None
    before: int | None = None


class RestatedForward:
    """The forward of a module, or another of its methods, with some arguments of some calls replaced.

    on_trial: calls that are not known run as they are written; else they are an error where their sizes may differ.
    torch.compile ends its graph before it and runs it as it is written; torch.fx, which would read the sizes that are
    written, gets an error.
    """

    def __init__(
        self, module: nn.Module, restated: Sequence[Restated], method: str = "forward", on_trial: bool = False
    ) -> None:
        before = module.__dict__.get(method)
        self.module, self.method, self.on_trial = module, method, on_trial
        self.forward: Callable[..., object] | None = before.forward if isinstance(before, RestatedForward) else before
        self.restated = list(restated)

    @not_compiled("its program states sizes that pruning replaces where it runs")
    def __call__(self, *args: object, **kwargs: object) -> object:
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            raise self._not_traced()
        module = called_module(self, self.method, self.module, sys._getframe(1))
        return self._run(module, args, kwargs)

    def _run(self, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        original = self._original_of(module)
        if self.method != "forward" and _is_restated(module, sys._getframe(1)):
            return original(*args, **kwargs)
        with _Restating(module, self.lines, self.method == "forward", self.on_trial):
            return original(*args, **kwargs)

    def _original_of(self, module: nn.Module) -> Callable[..., object]:
        if self.forward is not None:
            return self.forward
        return MethodType(getattr(type(module), self.method), module)

    @cached_property
    def lines(self) -> dict[Line, _Calls]:
        """What is known of each line whose calls are given something else."""
        found: dict[Line, list[Restated]] = {}
        for item in self.restated:
            found.setdefault(item.site.line_of_code, []).append(item)
        return {line: _Calls.of(items) for line, items in found.items()}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "lines"}

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original_of(self.module))

    @property
    def __code__(self) -> Any:
        return self._original_of(self.module).__code__  # what torch.export asks a forward for

    @property  # type: ignore[misc]  # object's can be set
    def __class__(self) -> type:
        """What `isinstance` asks for. So does torch.fx of all that the module to be traced holds, before it reads the
        forward of the class, past this one."""
        frame = sys._getframe(1)
        if is_symbolic_trace_of_root(frame):
            raise self._not_traced()
        return RestatedForward

    def _not_traced(self) -> SizeError:
        return SizeError(
            f"{type(self.module).__name__}: sizes that its program states were replaced by pruning, which torch.fx "
            'does not see; get a graph by passes.capture(model, inputs, frontend="export"), or prune the graph: '
            'netadapt(..., form="graph")'
        )


def _is_restated(module: nn.Module, frame: FrameType | None) -> bool:
    """Whether `frame` runs within a method of `module` whose calls are replaced already."""
    while frame is not None:
        if frame.f_code is RestatedForward._run.__code__ and frame.f_locals["module"] is module:
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class _Calls:
    """The calls of one line: what each is given instead, and which were seen.

    same: what any call is given, where all that were seen are given the same; None where they differ.
    """

    given: Mapping[Place, Sequence[Restated]]
    known: frozenset[Place]
    same: Sequence[Restated] | None

    @classmethod
    def of(cls, restated: Sequence[Restated]) -> _Calls:
        given: dict[Place, list[Restated]] = {}
        for item in restated:
            given.setdefault(item.site.place, []).append(item)
        known = frozenset(given).union(*(item.site.known for item in restated))
        by_place = [
            [(r.position, r.value, r.ratio, r.before) for r in given.get(place, ()) if r.ratio != (1, 1)]
            for place in known
        ]
        alike = all(one == by_place[0] for one in by_place)
        return cls(given, known, next(iter(given.values())) if alike else None)


class NotesLayers(TorchFunctionMode):
    """A function mode that keeps which layer's parameters torch was given last."""

    def note_layer(self, given: Iterable[object]) -> None:
        """Note the layer that gives these to torch, if parameters of one are among them."""
        raise NotImplementedError


class _Restating(NotesLayers):
    """whole: the forward runs from its beginning; else a method of it by itself, as in backward of a checkpoint."""

    def __init__(self, module: nn.Module, lines: Mapping[Line, _Calls], whole: bool, on_trial: bool) -> None:
        super().__init__()
        self.module, self.lines, self.whole, self.on_trial = module, lines, whole, on_trial
        self.functions = {function for function, _, _ in lines}
        self.owners = {} if all(calls.same is not None for calls in lines.values()) else owners_of(module)
        self.after: str | None = None
        self.times: Counter[Line] = Counter()  # since then

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, restated = name_of(func), None
        if name in self.functions and not self._is_replaced(sys._getframe(1)):
            found = calling(sys._getframe(1))
            calls = self.lines.get((name, *found[1])) if found is not None and found[0] is self.module else None
            if calls is not None and found is not None:
                restated = self._restated((name, *found[1]), calls)
        if self.owners:
            self.note_layer((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {})) if restated is None else called(func, args, kwargs or {}, restated)

    def _is_replaced(self, frame: FrameType | None) -> bool:
        """Whether a run of the same module within this one hands the call on: a forward that calls itself."""
        for _ in range(2):  # `called`, and the mode that called it
            if frame is not None and frame.f_code is _Restating.__torch_function__.__code__:
                return frame.f_locals["self"].module is self.module
            frame = None if frame is None else frame.f_back
        return False

    def note_layer(self, given: Iterable[object]) -> None:
        for argument in given:
            if id(argument) in self.owners:
                self.after = self.owners[id(argument)]
                self.times.clear()

    def _restated(self, line: Line, calls: _Calls) -> Sequence[Restated]:
        if calls.same is not None:
            return calls.same
        after = self.after
        if after is None and not self.whole and len(layers := {layer for layer, _ in calls.known}) == 1:
            (after,) = layers  # the one that ran before the method was called
        place = after, self.times[line]
        self.times[line] += 1
        if place not in calls.known and not self.on_trial:
            function, code, number = line
            behind = "before any layer" if self.after is None else f"behind {self.after or 'its own parameters'}"
            raise SizeError(
                f"{type(self.module).__name__}: {code}, {number} lines below its head, calls {function} {behind} once "
                "more often than when the network was analysed. Pruning left other sizes for other calls of this line, "
                "so nobody knows which are meant. Call it as in the example, prune it with an example that does the "
                "same, or keep these layers whole (exclude: [names of their groups])"
            )
        return calls.given.get(place, ())


def note_layer(module: nn.Module) -> None:
    """Tell the modes that keep it that a layer gives its parameters to torch, where they do not see that."""
    for mode in function_modes():
        if isinstance(mode, NotesLayers):
            mode.note_layer(parameters_of(module).values())


def owners_of(module: nn.Module) -> dict[int, str]:
    """By id, the parameters of a module and of its children: the path of the one that holds each, from the module."""
    found: dict[int, str] = {}
    for path, part in module.named_modules():
        for parameter in parameters_of(part).values():
            if parameter is not None:
                found.setdefault(id(parameter), path)
    return found


def called(func: Any, args: tuple, kwargs: Mapping[str, object], restated: Sequence[Restated]) -> Any:
    """``func(*args, **kwargs)`` with arguments replaced."""
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for item in restated:
        if item.position == SIZES:
            dim = _dimension(given)
            return torch.split(given[0], list(item.value), dim)
        given = replaced_at(given, item.position, item.value, item.ratio)
    positional = [given.pop(place) for place in range(len(args))]
    return func(*positional, **{str(name): value for name, value in given.items()})


def _dimension(given: Mapping[Any, Any]) -> int:
    return int(given.get("dim", given.get(2, 0)))


def replaced_at(value: Any, position: Position, new: Any, ratio: tuple[int, int] | None = None) -> Any:
    """A copy of nested arguments with the one at `position` replaced (see `Restated`)."""
    if not position:
        if ratio is not None:
            return _scaled(value, new, *ratio)
        if isinstance(new, tuple):
            return _constant(new, value) if isinstance(value, torch.Tensor) else list(new[0])
        return new
    first, rest = position[0], position[1:]
    if isinstance(value, slice):
        parts = {name: getattr(value, name) for name in ("start", "stop", "step")}
        parts[str(first)] = replaced_at(parts[str(first)], rest, new, ratio)
        return slice(parts["start"], parts["stop"], parts["step"])
    if isinstance(value, Mapping):
        return {**value, first: replaced_at(value.get(first), rest, new, ratio)}
    items = list(value)
    items[int(first)] = replaced_at(items[int(first)], rest, new, ratio)
    return tuple(items) if isinstance(value, tuple) else items


def _scaled(given: object, new: int, left: int, before: int) -> object:
    """A size of which a factor that was `before` is `left` now; `new` where it holds no such factor any more.

    Under torch.jit.trace a size is a tensor without dimensions, and has to remain one.
    """
    size = given
    if isinstance(given, torch.Tensor):
        with warnings.catch_warnings(action="ignore", category=torch.jit.TracerWarning):
            size = int(given)
    if not isinstance(size, int) or size == -1:
        return given
    return given // before * left if size % before == 0 else new  # type: ignore[operator]


def _constant(new: tuple[object, torch.dtype], old: torch.Tensor) -> object:
    """A number in place of a tensor without dimensions, or a tensor that no mode sees being made."""
    if not isinstance(new[0], tuple):
        return new[0]
    with no_dispatch_modes():
        return torch.tensor(new[0], dtype=new[1], device=old.device)


def name_of(func: object) -> str:
    """A function's name that another process knows as well."""
    return _NAMES.get(func) or _NAMES.setdefault(func, resolve_name(func) or getattr(func, "__name__", repr(func)))


_NAMES: dict[object, str] = {}


def calling(frame: FrameType | None) -> tuple[nn.Module, tuple[str, int]] | None:
    """The innermost module whose method is running in `frame` or below it, and the user's line that is being run.

    The line is counted from the head of its function, so that edits elsewhere in a file do not move it.
    """
    line: tuple[str, int] | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename == CHECKPOINTING:  # what runs again in backward, when nothing is replaced
            return None
        if line is None and not code.co_filename.startswith(OWN_FILES):
            line = code.co_name, frame.f_lineno - code.co_firstlineno
        if code.co_varnames[:1] == ("self",):
            holder = frame.f_locals.get("self")
            if isinstance(holder, RestatedForward):
                holder = holder.module  # of a method that is called by itself, and names its module otherwise
            if isinstance(holder, nn.Module):
                return (holder, line) if line is not None else None
        frame = frame.f_back
    return None


def methods_running(module: nn.Module, frame: FrameType | None) -> tuple[str, ...]:
    """The methods of `module` that `frame` runs in, the innermost first, up to its forward."""
    found: list[str] = []
    while frame is not None and found[-1:] != ["forward"]:
        code = frame.f_code
        if code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is module:
            found.append(code.co_name)
        frame = frame.f_back
    return tuple(found)
