"""Runs a module with cut tensors beside what its axes promise, and finds the attributes that have to follow.

A size can hide where no rule sees it: an attribute, a list, a configuration object. The module is run with every group
reduced at once. Where a call fails, or gives another shape than promised, integers of the modules that are running
which equal an old size there are changed until the run gets further. What cannot be made to follow stays, with the
reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from passes import numbers
from passes.axes import Axis, Reason
from passes.coupling import Coupling, Edit
from passes.module_copies import stream_copy
from passes.module_inputs import Arguments, replaced, tensors_of
from passes.module_resize import fit
from passes.module_stream import ModuleInference, innermost_line, on_meta_device, recording, run_scripted, said
from passes.ops import Record, Value, spelled
from passes.size_attributes import Key, Sizes, integers_of, same_elsewhere
from passes.skeleton import modules_of
from passes.slicing import Slicing

_MOST_TRIES = 150  # of edits at one failure
_NEAR = 6  # calls before a failure whose axes may explain an integer


@dataclass
class Failure:
    """Where a run differs from what its axes promise. place: number of the call. path: of the module that ran."""

    place: int
    text: str
    path: str
    source: str
    error: Exception | None = field(default=None, repr=False)


class _Differs(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Following(ModuleInference):
    """Compares each call with that of the tape which was recorded before anything was cut."""

    def __init__(self, tape: Sequence[Record], slicing: Slicing, real: bool) -> None:
        super().__init__(real)
        self.tape, self.slicing, self.place = tape, slicing, 0

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        if self._is_constant(tensor):
            super().attach(tensor, value)
        else:
            tensor._fxprune_value = value  # type: ignore[attr-defined]

    def _record(self, func, args, kwargs, operands, before, outputs) -> None:
        if self.place >= len(self.tape):
            self._differ(f"{spelled(func)} is called, which was not before")
        record = self.tape[self.place]
        if record.func is not func:
            self._differ(f"{spelled(func)} is called in place of {spelled(record.func)}")
        expected = [[self.slicing.size(axis) for axis in value.axes] for value in record.outputs]
        got = [list(tensor.shape) for tensor in outputs]
        if expected != got:
            self._differ(f"its size does not follow: expected {expected}, got {got}")
        for tensor, number in zip(outputs, itertools.count()):
            if any(tensor is operand for operand in operands):
                self.rewritten |= not tensor.is_floating_point()
                continue
            value = Value("", ())
            if not tensor.is_floating_point():
                value.numbers = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
            self.attach(tensor, value)
        self.place += 1

    def _differ(self, text: str) -> None:
        raise _Differs(Failure(self.place, text, self.paths[-1], self.source()))


@dataclass
class Trial:
    """One module, its coupling, and what each group is reduced to; `run` says how far a set of edits gets."""

    module: nn.Module
    coupling: Coupling
    arguments: Arguments
    slicing: Slicing
    real: bool
    tape: Sequence[Record]
    training: bool = False

    def run(self, edits: Sequence[Edit]) -> Failure | None:
        """Run the cut module; None where every call gives what its axes promise."""
        mode = Following(self.tape, self.slicing, self.real)

        def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
            made = self.slicing.sliced(name, tensor, meta=not self.real)
            value = Value(name, (), numbers=None)
            if numbers.stated(tensor) is not None:
                value.numbers = numbers.stated(self.slicing.sliced(name, tensor))
            mode.attach(made, value)
            mode.keep.append(made)
            mode.names[id(tensor)] = made
            return made

        def scripted(path: str, original: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            result, outputs, _ = run_scripted(mode, original, args, kwargs)
            for tensor in outputs:
                mode.attach(tensor, Value(path, ()))
            mode.place += 1
            return result

        copied, _ = stream_copy(self.module, cut, scripted, mode.paths)
        mode.device = next((t.device for t in self.module.parameters()), torch.device("cpu"))
        fit(copied, self.slicing, edits)
        given = {id(t): (t.detach().clone() if self.real else on_meta_device(t)) for t in tensors_of(self.arguments)}
        for made in given.values():
            mode.attach(made, Value("input", ()))
        args, kwargs = replaced(self.arguments, given)
        copied.train(self.training)
        mode.training = self.training
        try:
            with recording(mode):
                copied(*args, **kwargs)
        except _Differs as difference:
            return difference.failure
        except Exception as error:  # whatever the user's program raises on a smaller size
            path, source = _innermost(error, {id(m): p for p, m in modules_of(copied).items()})
            return Failure(mode.place, f"the module cannot follow a smaller size: {said(error)}", path, source, error)
        if mode.place < len(self.tape):
            return Failure(mode.place, "fewer operators are called than before", "", "")
        return None


def _innermost(error: Exception, paths: dict[int, str]) -> tuple[str, str]:
    """The path of the innermost module on the way of an error, and the user's line."""
    path, trace = "", error.__traceback__
    while trace is not None:
        holder = trace.tb_frame.f_locals.get("self")
        if isinstance(holder, nn.Module) and id(holder) in paths:
            path = paths[id(holder)]
        trace = trace.tb_next
    return path, innermost_line(error)


def edits_that_follow(trial: Trial, known: Sequence[Edit] = ()) -> tuple[list[Edit], Failure | None]:
    """The integers that have to follow, and where even so the module cannot (None: it can)."""
    edits = list(known)
    failure = trial.run(edits)
    while failure is not None:
        step = next(_steps(trial, edits, failure), None)
        if step is None:
            return edits, failure
        added, failure = step
        edits = [*edits, *added]
        others = same_elsewhere(trial.module, added, trial.coupling.structure.tensors, edits)
        if others and failure is not None:
            further = trial.run([*edits, *others])
            if further is None or further.place > failure.place:
                edits, failure = [*edits, *others], further
    return edits, None


def _steps(trial: Trial, edits: list[Edit], failure: Failure) -> Iterator[tuple[list[Edit], Failure | None]]:
    """Sets of further edits with which the module gets further, the likeliest first."""
    tried = 0
    for path in _stack(failure.path):
        choices = _choices(trial, path, failure.place, edits)
        for added in _combinations(path, choices):
            if tried >= _MOST_TRIES:
                return
            tried += 1
            after = trial.run([*edits, *added])
            if after is None or after.place > failure.place:
                yield added, after


def _stack(path: str) -> Iterator[str]:
    """`path`, and every module around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _choices(trial: Trial, path: str, place: int, edits: Sequence[Edit]) -> list[tuple[Key, list[Axis]]]:
    """The integers of one module that an old size explains, and the axes that each may stand for."""
    slicing = trial.slicing
    near: list[Axis] = []
    for record in (*trial.tape[place : place + 1], *reversed(trial.tape[max(0, place - _NEAR) : place])):
        near += [axis for value in (*record.outputs, *record.inputs) for axis in value.axes]
        near += record.literals.values()
    prefix = f"{path}." if path else ""
    near += [a for name, axes in trial.coupling.structure.tensors.items() if name.startswith(prefix) for a in axes]
    sizes = Sizes(slicing.narrowed(near), slicing.size)
    done = {edit.attribute for edit in edits if edit.path == path}
    module = modules_of(trial.module)[path]
    return [(key, sizes.of(n)) for key, n in integers_of(module) if n > 1 and key not in done and sizes.of(n)]


def _combinations(path: str, choices: list[tuple[Key, list[Axis]]]) -> Iterator[list[Edit]]:
    """All integers at once, each with its nearest axis; then few at a time."""
    if not choices:
        return
    options = [[Edit(path, key, (axis,)) for axis in axes] for key, axes in choices]
    own = [edits for (key, _), edits in zip(choices, options, strict=True) if len(key) == 1]
    yield from ([edits[0] for edits in some] for some in (own, options) if len(some) > 1)
    for count in (1, 2, 3):
        for chosen in itertools.combinations(options, count):
            yield from (list(one) for one in itertools.product(*chosen))


def refused_axes(trial: Trial, failure: Failure) -> list[tuple[Axis, Reason]]:
    """The axes that meet where the module cannot follow, with the reason that they stay."""
    slicing = trial.slicing
    for place in (failure.place, failure.place - 1):
        if 0 <= place < len(trial.tape):
            record = trial.tape[place]
            reason = Reason(failure.text, failure.path or record.node, spelled(record.func), failure.source)
            values = (*record.outputs, *record.inputs)
            found = [(axis, reason) for axis in slicing.narrowed(a for v in values for a in v.axes)]
            if found:
                return found
    reason = Reason(failure.text, failure.path, "", failure.source)
    prefix = f"{failure.path}." if failure.path else ""
    tensors = trial.coupling.structure.tensors
    return [(a, reason) for name, axes in tensors.items() if name.startswith(prefix) for a in slicing.narrowed(axes)]
