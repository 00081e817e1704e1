"""Every call of torch that a module's program makes, with its place on the tape: where a literal may have to change."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from passes.process.torch_private import no_dispatch_modes
from passes.stream.call_arguments import tensors_of
from passes.stream.function_mode import Functions
from passes.stream.module_stream import FEW, ModuleInference, Watching
from passes.stream.restated_calls import (
    Line,
    NotesLayers,
    Place,
    Position,
    Site,
    calling,
    methods_running,
    name_of,
    owners_of,
)


@dataclass(frozen=True)
class LoggedCall:
    """One call: the path of the module that makes it, its site, its records on the tape, the numbers given to it.

    indices: where among its arguments lists and tensors of positions stand.
    """

    path: str
    site: Site
    start: int
    stop: int
    numbers: tuple[tuple[Position, Any], ...]
    indices: tuple[Position, ...] = ()
    head_size: int | None = None  # of attention whose scale is left to torch


class Logging(Functions, NotesLayers):
    """Keeps a `LoggedCall` for each call that reaches a torch function."""

    mode: Watching

    def __init__(self, mode: Watching, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(mode)
        self.paths, self.log = paths_of(modules), list[LoggedCall]()
        self._modules = modules
        self._owners: dict[int, dict[int, str]] = {}  # by the id of a module (see `owners_of`)
        self._times: dict[tuple[int, Line], tuple[int, int]] = {}  # the use of a layer, and calls since then
        self._known: dict[tuple[str, Line], dict[Place, None]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        start = self.mode.place
        found = calling(sys._getframe(1))
        site = None
        if found is not None and id(found[0]) in self.paths:
            site = self._site(func, found, methods_running(found[0], sys._getframe(1)))
        self.note_layer((*args, *(kwargs or {}).values()))
        result = super().__torch_function__(func, types, args, kwargs)
        if site is not None and found is not None and self.mode.place > start:
            given = {**dict(enumerate(args)), **(kwargs or {})}
            numbers = tuple(_numbers(given, (), self.mode))
            head = None
            if func is F.scaled_dot_product_attention and (kwargs or {}).get("scale") is None:
                head = int(args[0].shape[-1]) if args else None
            stop = self.mode.place
            indices = tuple(_indices(given, ()))
            self.log.append(LoggedCall(self.paths[id(found[0])], site, start, stop, numbers, indices, head))
        return result

    def _site(self, func: object, found: tuple[nn.Module, tuple[str, int]], methods: tuple[str, ...]) -> Site:
        caller, line = found[0], (name_of(func), *found[1])
        use, after = self._last_layer(caller)
        before = self._times.get((self.mode.stack.runs[-1], line), (use, 0))
        times = before[1] if before[0] == use else 0
        self._times[self.mode.stack.runs[-1], line] = use, times + 1
        self._known.setdefault((self.paths[id(caller)], line), {})[after, times] = None
        return Site(*line, times, after, methods)

    def _last_layer(self, caller: nn.Module) -> tuple[int, str | None]:
        """Of the module that runs, the last use of a parameter by a layer of `caller`: its number, and the layer."""
        owners = self._owners_of(caller)
        used, begun = self.mode.stack.used, self.mode.stack.begun[-1]
        for number in range(len(used) - 1, begun - 1, -1):
            if used[number] in owners:
                return number, owners[used[number]]
        return -1, None

    def _owners_of(self, module: nn.Module) -> dict[int, str]:
        if id(module) not in self._owners:
            self._owners[id(module)] = owners_of(module)
        return self._owners[id(module)]

    def note_layer(self, given: Iterable[object]) -> None:
        known = self._owners_of(self._modules[""])
        self.mode.stack.used += [id(argument) for argument in given if id(argument) in known]

    def calls(self) -> list[LoggedCall]:
        """The calls, each with the places of all calls of its line."""
        known = {key: tuple(places) for key, places in self._known.items()}
        return [replace(c, site=replace(c.site, known=known[c.path, c.site.line_of_code])) for c in self.log]


class LastCall(Functions):
    """Knows the call that was begun last: after an error the one that failed."""

    def __init__(self, mode: ModuleInference) -> None:
        super().__init__(mode)
        self._last: tuple[tuple, Mapping[str, object]] = (), {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        clears_up = sys.exc_info()[1] is not None and next(tensors_of((args, kwargs)), None) is None
        if not clears_up:  # leaving torch.no_grad after an error is a call as well
            self._last = args, kwargs or {}
        return super().__torch_function__(func, types, args, kwargs)

    def numbers(self) -> dict[Position, Any]:
        """The numbers among its arguments."""
        args, kwargs = self._last
        return dict(_numbers({**dict(enumerate(args)), **kwargs}, (), self.mode))


class WithoutDropout(LastCall):
    """Has functions drop nothing, so that a run in train mode makes the calls of one in evaluation mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**(kwargs or {})}
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return super().__torch_function__(func, types, args, kwargs)


_DROPOUTS = frozenset(
    (torch.dropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
)


def _numbers(value: Any, position: Position, mode: ModuleInference) -> Iterator[tuple[Position, Any]]:
    """Each number among the arguments of a call, constants with few elements included, with its position."""
    if isinstance(value, torch.Tensor):
        with no_dispatch_modes():  # what is looked at here is no call of the program
            constant = position and not value.is_meta and value.numel() <= FEW and not mode.holds_data(value)
        if constant:
            yield position, (_tuples(value.tolist()), value.dtype)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield position, value
    elif isinstance(value, slice):
        for name in ("start", "stop"):
            if isinstance(getattr(value, name), int):
                yield (*position, name), getattr(value, name)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from _numbers(item, (*position, number), mode)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, (*position, name), mode)


def _indices(value: object, position: Position) -> Iterator[Position]:
    """Where in the arguments of a call lists, and tensors of one dimension, of whole numbers or flags stand."""
    if isinstance(value, torch.Tensor):
        if position and value.dim() == 1 and not value.is_floating_point() and not value.is_complex():
            yield position
    elif isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            yield position
    elif isinstance(value, (tuple, Mapping)):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _indices(item, (*position, name))


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def call_at(log: Sequence[LoggedCall], place: int) -> LoggedCall | None:
    """The innermost call that made record number `place`."""
    found = [call for call in log if call.start <= place < call.stop]
    return min(found, key=lambda call: call.stop - call.start, default=None)


def is_split(call: LoggedCall) -> bool:
    """Whether a call cuts its argument into pieces whose sizes could be stated."""
    return call.site.function.rpartition(".")[2] in ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split")


def paths_of(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The path of each module by its id; the first of a shared one."""
    found: dict[int, str] = {}
    for path, module in modules.items():
        found.setdefault(id(module), path)
    return found
