"""Runs a module with cut tensors beside what its axes promise, and finds the attributes that have to follow.

A size can hide where no rule sees it: an attribute, a list, a configuration object. The module is run with every group
reduced at once. Where a call fails, or gives another shape than promised, integers of the modules that are running
which equal an old size there are changed until the run gets further; where none helps, the arguments of the call itself
(see `passes.stream.restated_calls`). What cannot be made to follow stays, with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.analysis.module_facts import Edit, Literal
from passes.analysis.tape import once_each, resolve_axes
from passes.axes.expressions import Axis, Reason, leaves
from passes.equality.constant_double import constant_double
from passes.equality.double import double
from passes.errors import PassError
from passes.graph.module_copies import like, modules_of
from passes.masked.masked_stream import MaskedInference
from passes.ops import Record, spelled
from passes.ops import constant_indices as numbers
from passes.process.source_lines import innermost_line, said
from passes.stream.call_arguments import Arguments, replaced, tensors_of
from passes.stream.call_log import LastCall, LoggedCall, Logging, call_at, is_split, paths_of
from passes.stream.module_run import ModuleRun
from passes.stream.module_stream import Watching
from passes.stream.restated_calls import SIZES, Position
from passes.transform.module_sizes import fit
from passes.transform.size_attributes import Key, Sizes, axes_elsewhere, edits_elsewhere, edits_of_unread, integers_of
from passes.transform.slicing import Slicing
from passes.trial.following import AtOtherSizes, Differs, Failure, Following, Promised, positions_of
from passes.trial.stated_sizes import edits_of_sources, state_sources

_MOST_TRIES = 45  # of edits at one failure
aten = torch.ops.aten
_AXES = 3  # how many axes of one size an integer is tried as
_NEAR = 6  # calls before a failure whose axes may explain an integer


@dataclass(frozen=True)
class Changes:
    """What is changed in a cut module so that it follows: integers in its attributes, arguments of its calls."""

    edits: tuple[Edit, ...] = ()
    literals: tuple[Literal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.edits or self.literals)

    def resolved(self, resolve: Callable[[Axis], Axis]) -> Changes:
        """These changes with their axes as they stand now; those of frozen ones are left out."""
        edits = [replace(edit, axes=tuple(map(resolve, edit.axes))) for edit in self.edits]
        literals = [replace(item, axes=tuple(map(resolve, item.axes))) for item in self.literals]

        def moves(axes: tuple[Axis, ...]) -> bool:
            return not axes or any(map(leaves, axes))

        return Changes(tuple(e for e in edits if moves(e.axes)), tuple(i for i in literals if moves(i.axes)))

    def __add__(self, other: Changes) -> Changes:
        """Both; what the second says of the same attribute or argument holds."""
        edits = {(edit.path, edit.attribute): edit for edit in self.edits + other.edits}
        literals = {(item.path, item.site, item.position): item for item in self.literals + other.literals}
        return Changes(tuple(edits.values()), tuple(literals.values()))


@dataclass
class Trial:
    """One module, its coupling, and what each group is reduced to; `run` says how far a set of changes gets.

    copy: of the module, to be run. tape: the calls of the dense module, which those of the cut one are compared with.
    turned: the line at which a condition gets the other answer. moved: whether in a run so far constants that the
    program makes of sizes moved with these, which at other widths may be right or not.
    """

    module: nn.Module
    copy: ModuleRun
    coupling: Coupling
    arguments: Arguments
    slicing: Slicing
    tape: Sequence[Record]
    training: bool = False
    turned: str = ""
    moved: bool = field(default=False, init=False)
    real: ClassVar[bool] = False
    _known: dict[Changes, Failure | None] = field(default_factory=dict)
    _unread: dict[Changes, Changes] = field(default_factory=dict)

    def run(self, changes: Changes) -> Failure | None:
        """Run the cut module; None where every call gives what its axes promise."""
        if changes not in self._known:
            self._known[changes] = self._run(changes)
        return self._known[changes]

    def runs_at(self, changes: Changes, resized: Arguments) -> bool:
        """Whether the cut module makes the same calls on inputs of other sizes too: then both are tried in one run."""
        try:
            given = zip(tensors_of(self.arguments), tensors_of(resized), strict=True)
            lengths = {pair for old, new in given for pair in zip(old.shape, new.shape, strict=True)}
            mode = AtOtherSizes(self.promised, lengths)
            self._called(mode, resized, changes, LastCall(mode))
        except Exception:  # one of the two cannot be; which, other runs tell
            return False
        if mode.is_done:
            self._known[changes] = None
        return mode.is_done

    def _called(self, mode: Watching, arguments: Arguments, changes: Changes, functions: LastCall) -> None:
        def prepare(copied: nn.Module) -> None:
            fit(copied, self.slicing, changes.edits, changes.literals)

        with self.settings():
            self.copy.again(mode, arguments, self.training, functions, self.data, prepare, self.turned)

    def _run(self, changes: Changes) -> Failure | None:
        mode = Following(self.promised, self.real)
        functions = LastCall(mode)
        try:
            self._called(mode, self.arguments, changes, functions)
        except Differs as difference:
            return replace(difference.failure, numbers=functions.numbers())
        except Exception as error:  # whatever the user's program raises on a smaller size
            path, source = _innermost(error, {id(m): p for p, m in modules_of(self.copy.copy).items()})
            text = f"the module cannot follow a smaller size: {said(error)}"
            return Failure(mode.place, text, path, source, numbers=functions.numbers())
        finally:
            self.moved |= mode.moved
        if mode.place < len(self.tape):
            return Failure(mode.place, "fewer operators are called than before", "", "")
        return None

    def unread(self, known: Changes) -> Changes:
        """Edits of integers that a run need not read."""
        if known not in self._unread:
            tensors, narrowed = self.coupling.structure.tensors, self.slicing.narrowed
            self._unread[known] = Changes(tuple(edits_of_unread(self.module, tensors, known.edits, narrowed)))
        return self._unread[known]

    @cached_property
    def promised(self) -> Promised:
        """What the calls of the cut module have to give."""
        return Promised(self.tape, self.slicing)

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        """What stands for those tensors of the module that are cut."""
        size, known = self.slicing.size, self.coupling.structure.tensors
        found, empty = {}, cache(lambda shape, dtype: torch.empty(shape, dtype=dtype, device="meta"))
        for name, tensor in self.copy.originals.items():
            shape = tuple([size(axis) for axis in known[self.coupling.aliases[name]]])
            if shape != tensor.shape:
                read = numbers.stated(tensor) is not None
                found[name] = self.slicing.sliced(name, tensor) if read else empty(shape, tensor.dtype)
        return found

    def settings(self) -> AbstractContextManager[None]:
        """Inside, the module runs."""
        return nullcontext()

    @cached_property
    def log(self) -> list[LoggedCall]:
        """The calls of the module's program before anything was cut."""
        try:
            return self._logged(state_sources)
        except Exception:  # a program may refuse integers of another class; it ran on its own
            return self._logged(lambda root: None)

    def _logged(self, prepare: Callable[[nn.Module], None]) -> list[LoggedCall]:
        mode = Watching(self.real)
        functions = Logging(mode, paths_of(modules_of(self.copy.copy)))
        with self.settings():
            self.copy.again(mode, self.arguments, self.training, functions, prepare=prepare, turned=self.turned)
        return functions.log


@dataclass
class RealTrial(Trial):
    """A trial on values, for a program that asks for some: in double precision, beside the masked original.

    What a program decides by values it decides alike in both, as they compute the same.
    """

    real: ClassVar[bool] = True

    def __post_init__(self) -> None:
        mode = MaskedInference(self.coupling, self.slicing.masks, tape=True)
        tensors, aliases = self.coupling.structure.tensors, self.coupling.aliases
        self.copy = ModuleRun(self.module, mode, self._masked, lambda name, _: tensors[aliases[name]])
        self.arguments = replaced(self.arguments, {id(t): double(t) for t in tensors_of(self.arguments)})
        with self.settings(), _in_words(self.module):
            self.copy.run(self.arguments, self.training, turned=self.turned)
        resolve_axes(once_each(mode.space.resolve), mode.values, mode.records)
        self.tape = mode.records

    def _masked(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        data = double(tensor)
        for dim, axis in enumerate(self.coupling.structure.tensors[self.coupling.aliases[name]]):
            gone = torch.from_numpy(np.flatnonzero(~self.slicing.remain(axis)))
            data.index_fill_(dim, gone.to(data.device), 0)
        return like(tensor, data)

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        return {name: double(self.slicing.sliced(name, tensor)) for name, tensor in self.copy.originals.items()}

    def settings(self) -> AbstractContextManager[None]:
        return constant_double()


@contextmanager
def _in_words(module: nn.Module) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # an operator that knows no double precision, say
        raise PassError(
            f"{type(module).__name__} asks for values, and does not run in double precision: {said(error)}; what is "
            "cut could not be proven. Choose operators that know it (a plain implementation of experts or attention)"
        ) from error


def _innermost(error: Exception, paths: dict[int, str]) -> tuple[str, str]:
    """The path of the innermost module on the way of an error, and the user's line."""
    path, trace = "", error.__traceback__
    while trace is not None:
        holder = trace.tb_frame.f_locals.get("self")
        if isinstance(holder, nn.Module) and id(holder) in paths:
            path = paths[id(holder)]
        trace = trace.tb_next
    return path, innermost_line(error)


def changes_that_follow(trial: Trial, known: Changes) -> tuple[Changes, Failure | None]:
    """What has to be changed, and where even so the module cannot follow (None: it can)."""
    changes = known
    failure = trial.run(changes)
    while failure is not None:
        step = next(_steps(trial, changes, failure), None)
        if step is None:
            return changes, failure
        added, failure = step
        changes = changes + added
        others = _elsewhere(trial, added, changes)
        if failure is not None and (others.edits or others.literals):
            further = trial.run(changes + others)
            if further is None or further.place >= failure.place:
                changes, failure = changes + others, further
    return changes, None


def _elsewhere(trial: Trial, added: Changes, known: Changes) -> Changes:
    """What other modules of the same classes need, where they keep the same sizes in the same places."""
    tensors = trial.coupling.structure.tensors
    edits = edits_elsewhere(trial.module, added.edits, tensors, known.edits)
    literals, modules = list[Literal](), modules_of(trial.module)
    taken = {(item.path, item.site, item.position) for item in known.literals}
    for literal in added.literals:
        calls = {call.path: call for call in trial.log if call.site == literal.site}
        if literal.axes:
            others = list(axes_elsewhere(modules, literal.path, literal.axes, tensors))
        else:
            kind = type(modules[literal.path])
            others = [(path, ()) for path in calls if type(modules[path]) is kind]
        for path, axes in others:
            if path not in calls or (path, literal.site, literal.position) in taken:
                continue
            value = dict(calls[path].numbers).get(literal.position)
            head_size = calls[path].head_size
            if literal.position == ("scale",) and value is None and head_size is not None:
                value = head_size**-0.5
            if axes and literal.position != SIZES and value != prod(axis.size for axis in axes):
                continue
            literals.append(replace(literal, path=path, axes=axes, value=None if axes else value))
    return Changes(tuple(edits), tuple(literals))


def _steps(trial: Trial, changes: Changes, failure: Failure) -> Iterator[tuple[Changes, Failure | None]]:
    """Sets of further changes with which the module gets further, the likeliest first."""
    around = list(_stack(failure.path))
    candidates = itertools.chain(
        _sources(trial, changes, failure),
        _attributes(trial, changes, failure, around[:1], deep=False),
        _literals(trial, changes, failure),
        _attributes(trial, changes, failure, around[:1], deep=True),
        _attributes(trial, changes, failure, around[1:], deep=False),
        _attributes(trial, changes, failure, around[1:], deep=True),
    )
    for added in itertools.islice(candidates, _MOST_TRIES):
        after = trial.run(changes + added)
        if after is None or after.place > failure.place:
            yield _fewest(trial, changes, added, after), after


def _fewest(trial: Trial, changes: Changes, added: Changes, after: Failure | None) -> Changes:
    """`added` without the attributes that the module gets as far without: they equal an old size by accident."""
    kept = list(added.edits)
    for edit in added.edits if len(added.edits) > 1 else ():
        fewer = Changes(tuple(other for other in kept if other is not edit))
        found = trial.run(changes + fewer)
        if found is None or (after is not None and found.place >= after.place):
            kept.remove(edit)
    return Changes(tuple(kept), added.literals)


def _sources(trial: Trial, changes: Changes, failure: Failure) -> Iterator[Changes]:
    """The attributes that the numbers of the failing call were computed from."""
    call = call_at(trial.log, failure.place)
    if call is not None and not failure.is_number:
        records = trial.tape[call.start : call.stop]
        shape = records[-1].outputs[0].axes if records and records[-1].outputs else ()
        exact, sizes = dict(_as_shape(call, shape)), _sizes_near(trial, records)
        for edits in edits_of_sources(call.numbers, exact, sizes, trial.slicing, changes.edits):
            yield Changes(edits)


def _sizes_near(trial: Trial, records: Sequence[Record]) -> Sizes:
    near = [axis for record in records for v in (*record.outputs, *record.inputs) for axis in v.axes]
    near += [axis for record in records for axis in record.literals.values()]
    return Sizes(trial.slicing.narrowed(near), trial.slicing.size)


def _attributes(
    trial: Trial, changes: Changes, failure: Failure, paths: Sequence[str], deep: bool
) -> Iterator[Changes]:
    """Integers of the modules at `paths`: their own, or, `deep`, those of lists and objects that they hold."""
    for path in paths:
        choices = _choices(trial, path, failure.place, changes.edits)
        choices = [(key, axes[:_AXES]) for key, axes in choices if (len(key) > 1) == deep]
        found = (Changes(tuple(edits)) for edits in _combinations(path, choices))
        yield from itertools.islice(found, _MOST_TRIES // 3)


def _literals(trial: Trial, changes: Changes, failure: Failure) -> Iterator[Changes]:
    """Arguments of the call that fails: those that equal an old size there, or a number that a size was made into."""
    call = call_at(trial.log, failure.place)
    if call is None:
        return
    for literals in _literals_of(trial, call, failure):
        if not all(literal in changes.literals for literal in literals):
            yield Changes((), literals)


def _literals_of(trial: Trial, call: LoggedCall, failure: Failure) -> Iterator[tuple[Literal, ...]]:
    if failure.is_number:
        records = trial.tape[call.start : call.stop]
        constants = [values for record in records for values in record.constants.values()]
        known = [(p, n) for p, n in call.numbers if not isinstance(n, tuple) or _flat(n[0]) in constants]
        if call.head_size is not None:
            known.append((("scale",), call.head_size**-0.5))
        for position, number in known:
            yield (Literal(call.path, call.site, position, (), number),)
        return
    given = dict(call.numbers)

    def moved(position: Position) -> bool:
        return failure.lacks(position, given.get(position, 0)) and position in failure.numbers

    records = trial.tape[call.start : call.stop]
    for position, order, axis in _orders(trial, call, failure):
        yield (Literal(call.path, call.site, position, (axis,), order=tuple(order)),)
    if is_split(call):
        pieces = [value.axes for record in records for value in record.outputs]
        for dim in range(len(pieces[0])):
            if trial.slicing.narrowed(axes[dim] for axes in pieces):
                yield (Literal(call.path, call.site, SIZES, tuple(axes[dim] for axes in pieces)),)
    shape = records[-1].outputs[0].axes if records[-1].outputs else ()
    exact = list(_as_shape(call, shape))
    lacking = [position for position, axis in exact if failure.lacks(position, trial.slicing.size(axis))]
    stated = tuple(
        Literal(call.path, call.site, position, (axis,), absolute=moved(position))
        for position, axis in exact
        if position in lacking or leaves(axis)  # what is right may be so at these widths alone
    )
    if lacking:
        yield stated
    sizes = _sizes_near(trial, records)
    options = [
        [
            Literal(call.path, call.site, position, (axis,), negative=number < 0, absolute=moved(position))
            for axis in sizes.of(abs(number))
            if failure.lacks(position, trial.slicing.size(axis) * (-1 if number < 0 else 1))
        ]
        for position, number in call.numbers
        if isinstance(number, int) and abs(number) > 1 and sizes.of(abs(number))
    ]
    for count in (1, 2):
        for chosen in itertools.combinations(options, count):
            yield from itertools.product(*chosen)


def _flat(numbers: object) -> list[object]:
    return [n for part in numbers for n in _flat(part)] if isinstance(numbers, tuple) else [numbers]


def _orders(trial: Trial, call: LoggedCall, failure: Failure) -> Iterator[tuple[Position, list[int], Axis]]:
    """Where the failing call is given positions of an axis that loses some, which these are, and the axis."""
    record = trial.tape[failure.place] if failure.place < len(trial.tape) else None
    places = positions_of(record) if record is not None and len(record.inputs) > 1 else None
    for dim, order in (places or {}).items():
        assert record is not None, "it states positions"
        for position in call.indices:
            yield position, order, record.inputs[0].axes[dim]


def _as_shape(call: LoggedCall, shape: Sequence[Axis]) -> Iterator[tuple[Position, Axis]]:
    """The arguments that state the shape of what a call gives, dimension by dimension from the last."""
    numbers = [(position, number) for position, number in call.numbers if isinstance(number, int)]
    for (position, number), axis in zip(reversed(numbers), reversed(shape), strict=False):
        if number not in (-1, axis.size):
            return
        if number == axis.size:
            yield position, axis


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
    if len(options) > 1:
        yield [edits[0] for edits in options]
    for count in (1, 2):
        for chosen in itertools.combinations(options, count):
            yield from (list(one) for one in itertools.product(*chosen))


def refused_axes(trial: Trial, failure: Failure) -> list[tuple[Axis, Reason]]:
    """The axes that meet where the module cannot follow, with the reason that they stay.

    Where none meets there, those of the module that ran stay, or the nearest before it: what an analysis loses sight of
    (a function that torch.jit runs) fails where its result is used.
    """
    slicing, tape = trial.slicing, trial.tape

    def narrowed(places: Iterable[int]) -> Iterator[list[tuple[Axis, Reason]]]:
        for place in places:
            if 0 <= place < len(tape):
                record = tape[place]
                reason = Reason(failure.text, failure.path or record.node, spelled(record.func), failure.source)
                values = (*record.outputs, *record.inputs)
                found = [(axis, reason) for axis in slicing.narrowed(a for v in values for a in v.axes)]
                if found:
                    yield found

    here = next(narrowed((failure.place, failure.place - 1)), None)
    if here is not None:
        return here
    reason = Reason(failure.text, failure.path, "", failure.source)
    prefix = f"{failure.path}." if failure.path else ""
    tensors = trial.coupling.structure.tensors
    own = [(a, reason) for name, axes in tensors.items() if name.startswith(prefix) for a in slicing.narrowed(axes)]
    return own or next(narrowed(range(failure.place - 2, -1, -1)), [])
