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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name

from passes.process.source_lines import OWN_FILES
from passes.process.torch_private import no_dispatch_modes

Position = tuple[str | int, ...]
SIZES: Position = ("sizes",)  # of a call that splits its first argument


@dataclass(frozen=True)
class Site:
    """One call in a module's program: the function, the line below the head of the code that calls it, which time.

    times: how often that line had called the function before, within one run of the module's forward. methods: those
    of the module that were running then, which may be called by themselves as well; seen: how often the line called it
    in all. Neither makes a difference.
    """

    function: str
    code: str
    line: int
    times: int
    methods: tuple[str, ...] = field(default=(), compare=False)
    seen: int = field(default=0, compare=False)

    @property
    def line_of_code(self) -> tuple[str, str, int]:
        """What all calls of a loop have in common."""
        return self.function, self.code, self.line


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
    """The forward of a module, or another of its methods, with some arguments of some calls replaced."""

    def __init__(self, module: nn.Module, restated: Sequence[Restated], method: str = "forward") -> None:
        before = module.__dict__.get(method)
        self.module, self.method = module, method
        self.forward: Callable[..., object] | None = before.forward if isinstance(before, RestatedForward) else before
        self.restated = list(restated)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.method != "forward" and _is_restated(self.module, sys._getframe(1)):
            return self._original(*args, **kwargs)
        with _Restating(self.module, self.restated):
            return self._original(*args, **kwargs)

    @property
    def _original(self) -> Callable[..., object]:
        if self.forward is not None:
            return self.forward
        return MethodType(getattr(type(self.module), self.method), self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)

    @property
    def __code__(self) -> Any:
        return self._original.__code__  # what torch.export asks a forward for


def _is_restated(module: nn.Module, frame: FrameType | None) -> bool:
    """Whether `frame` runs within a method of `module` whose calls are replaced already."""
    while frame is not None:
        if frame.f_code is RestatedForward.__call__.__code__ and frame.f_locals["self"].module is module:
            return True
        frame = frame.f_back
    return False


class _Restating(TorchFunctionMode):
    def __init__(self, module: nn.Module, restated: Sequence[Restated]) -> None:
        super().__init__()
        self.module = module
        self.functions = {item.site.function for item in restated}
        self.by_site: dict[Site, list[Restated]] = {}
        for item in restated:
            self.by_site.setdefault(item.site, []).append(item)
        self.later = _of_later_calls(self.by_site)
        self.times: Counter[tuple[str, str, int]] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = name_of(func)
        if name not in self.functions:
            return func(*args, **(kwargs or {}))
        found = calling(sys._getframe(1))
        if found is None or found[0] is not self.module:
            return func(*args, **(kwargs or {}))
        key = (name, *found[1])
        site = Site(*key, self.times[key])
        self.times[key] += 1
        seen, later = self.later.get(key, (0, ()))
        restated = later if seen and site.times >= seen else self.by_site.get(site, ())
        return called(func, args, kwargs or {}, restated)


def _of_later_calls(
    by_site: Mapping[Site, Sequence[Restated]],
) -> dict[tuple[str, str, int], tuple[int, Sequence[Restated]]]:
    """By line what a call is given that comes after all that were seen there, and how many those were.

    A loop over pieces of an input turns more often on a longer one. Only where all calls that were seen are given the
    same in place of the same, nothing else can be meant.
    """
    lines: dict[tuple[str, str, int], dict[int, list[Restated]]] = {}
    seen: Counter[tuple[str, str, int]] = Counter()
    for site, restated in by_site.items():
        line = site.line_of_code
        lines.setdefault(line, {})[site.times] = [item for item in restated if item.ratio != (1, 1)]  # that change some
        seen[line] = max(seen[line], site.seen)
    found: dict[tuple[str, str, int], tuple[int, Sequence[Restated]]] = {}
    for line, calls in lines.items():
        given = [[(r.position, r.value, r.ratio, r.before) for r in calls.get(n, ())] for n in range(seen[line])]
        if given and given[0] and all(one == given[0] for one in given):
            found[line] = seen[line], calls[0]
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
