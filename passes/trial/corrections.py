"""The changes with which a cut module runs: integers in its attributes, arguments of its calls.

A size can hide where no rule sees it: an attribute, a list, a configuration object. The module is run with every group
reduced at once. Where a call fails, or gives another shape than promised, integers of the modules that are running
which equal an old size there are changed until the run gets further; where none helps, the arguments of the call itself
(see `passes.stream.restated_calls`). What cannot be made to follow stays, with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

import torch

from passes.analysis.module_facts import Edit, Literal
from passes.axes.expressions import Axis, Reason, leaves
from passes.graph.module_copies import modules_of
from passes.ops import Record, spelled
from passes.stream.call_log import LoggedCall, call_at, is_split
from passes.stream.restated_calls import SIZES, Position
from passes.transform.size_attributes import Key, Sizes, axes_elsewhere, edits_elsewhere, integers_of
from passes.trial.following import Failure, positions_of
from passes.trial.module_trial import Changes, Trial
from passes.trial.stated_sizes import edits_of_sources

aten = torch.ops.aten
Attribute = tuple[str, Key]  # the path of a module, and the integer in it
_MOST_TRIES = 45  # of edits at one failure
_AXES = 3  # how many axes of one size an integer is tried as
_NEAR = 6  # calls before a failure whose axes may explain an integer


def changes_that_follow(
    trial: Trial, known: Changes, settled: Collection[Attribute] = ()
) -> tuple[Changes, Failure | None]:
    """What has to be changed, and where even so the module cannot follow (None: it can).

    settled: attributes that follow their axes, whatever fails.
    """
    changes = known
    failure = trial.run(changes)
    while failure is not None:
        step, stated = next(_steps(trial, changes, failure, settled), None), changes
        if step is None and not settled:
            step = next(_otherwise(trial, changes, failure), None)
            stated = _without(changes, step[0]) if step is not None else changes
        if step is None:
            return changes, failure
        added, failure = step
        before, changes = changes, changes + added
        elsewhere = _elsewhere(trial, added, stated + added) if failure is not None else Changes()
        for more in filter(None, (elsewhere, _corrected(trial, added, before, settled))):
            further = trial.run(changes + more)
            if _as_far(further, failure):
                changes, failure = changes + more, further
    return changes, None


def _as_far(after: Failure | None, before: Failure | None) -> bool:
    """Whether a run got at least as far as the one before."""
    return after is None or (before is not None and after.place >= before.place)


def _corrected(trial: Trial, added: Changes, before: Changes, settled: Collection[Attribute]) -> Changes:
    """What `added` says of attributes of which `before` said something else, for the other modules of their classes.

    What was wrong for one may be so for those that have not failed: at these widths they may take another way.
    """
    said = {(edit.path, edit.attribute): edit.axes for edit in before.edits}
    wrong = [e for e in added.edits if said.get((e.path, e.attribute), e.axes) != e.axes]
    if not wrong:
        return Changes()
    names = {edit.attribute for edit in wrong}
    known = [e for e in before.edits if e.attribute not in names] + wrong
    found = edits_elsewhere(trial.module, wrong, trial.coupling.structure.tensors, known)
    return Changes(tuple(e for e in found if (e.path, e.attribute) not in settled))


def _otherwise(trial: Trial, changes: Changes, failure: Failure) -> Iterator[tuple[Changes, Failure | None]]:
    """Changes with an attribute that follows another axis of its length: the one with which a program compares it.

    Calls that had its number before get arguments of their own, as one attribute is the size of two groups.
    """
    for key, axes in _choices(trial, failure.path, failure.place, changes.edits, again=True):
        for axis in axes[:_AXES]:
            edit = Edit(failure.path, key, (axis,))
            begun = changes + Changes((edit,))
            found, after = changes_that_follow(trial, begun, [(edit.path, edit.attribute)])
            if after is None or after.place > failure.place:
                edits = tuple(edit for edit in found.edits if edit not in changes.edits)
                yield Changes(edits, tuple(item for item in found.literals if item not in changes.literals)), after


def _without(changes: Changes, added: Changes) -> Changes:
    """`changes` without what they say of attributes of the names in `added`, which other modules may need as well."""
    names = {edit.attribute for edit in added.edits}
    return Changes(tuple(edit for edit in changes.edits if edit.attribute not in names), changes.literals)


def stated_splits(trials: Sequence[Trial]) -> Changes:
    """Calls that split by one number into pieces of different groups: what fits at some widths may not at others."""
    found = []
    for trial in trials:
        for place, record in enumerate(trial.tape):
            if record.func is aten.split.Tensor and _uneven(trial, record):
                call = call_at(trial.log, place)
                if call is not None and is_split(call):
                    found += [literals[0] for literals in _sizes_of_pieces(trial, call)]
    return Changes((), tuple(dict.fromkeys(found)))


def _uneven(trial: Trial, record: Record) -> bool:
    dims = zip(*(value.axes for value in record.outputs), strict=True)
    return any(len(set(axes)) > 1 and trial.slicing.narrowed(axes) for axes in dims)


def _sizes_of_pieces(trial: Trial, call: LoggedCall) -> Iterator[tuple[Literal]]:
    pieces = [value.axes for record in trial.tape[call.start : call.stop] for value in record.outputs]
    for axes in zip(*pieces, strict=True):
        if trial.slicing.narrowed(axes):
            yield (Literal(call.path, call.site, SIZES, axes),)


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
            site = calls[path].site
            literals.append(replace(literal, path=path, site=site, axes=axes, value=None if axes else value))
    return Changes(tuple(edits), tuple(literals))


def _steps(
    trial: Trial, changes: Changes, failure: Failure, settled: Collection[Attribute]
) -> Iterator[tuple[Changes, Failure | None]]:
    """Sets of further changes with which the module gets further, the likeliest first."""
    around = list(_stack(failure.path))
    candidates = itertools.chain(
        itertools.islice(_sources(trial, changes, failure), 2 * _MOST_TRIES // 3),  # others have their turn, too
        _attributes(trial, changes, failure, around[:1], deep=False),
        _literals(trial, changes, failure),
        _attributes(trial, changes, failure, around[:1], deep=True),
        _attributes(trial, changes, failure, around[1:], deep=False),
        _attributes(trial, changes, failure, around[1:], deep=True),
    )
    replaced = (
        _attributes(trial, changes, failure, around[:1], deep=False, again=True),
        _attributes(trial, changes, failure, around[:1], deep=True, again=True),
    )
    for added in itertools.chain(itertools.islice(candidates, _MOST_TRIES), *replaced):
        if any((edit.path, edit.attribute) in settled for edit in added.edits):
            continue
        after = trial.run(changes + added)
        if after is None or after.place > failure.place:
            yield _fewest(trial, changes, added, after), after


def _fewest(trial: Trial, changes: Changes, added: Changes, after: Failure | None) -> Changes:
    """`added` without the attributes that the module gets as far without: they equal an old size by accident."""
    kept = list(added.edits)
    for edit in added.edits if len(added.edits) > 1 else ():
        fewer = Changes(tuple(other for other in kept if other is not edit))
        found = trial.run(changes + fewer)
        if _as_far(found, after):
            kept.remove(edit)
    return Changes(tuple(kept), added.literals)


def _sources(trial: Trial, changes: Changes, failure: Failure) -> Iterator[Changes]:
    """The attributes that the numbers of the failing call were computed from."""
    call = call_at(trial.log, failure.place)
    if call is not None and not failure.is_number:
        records = trial.tape[call.start : call.stop]
        shape = records[-1].outputs[0].axes if records and records[-1].outputs else ()
        exact, sizes = {**dict(_as_shape(call, shape)), **_as_pieces(trial, call)}, _sizes_near(trial, records)
        for edits in edits_of_sources(call.numbers, exact, sizes, trial.slicing, changes.edits):
            yield Changes(edits)


def _as_pieces(trial: Trial, call: LoggedCall) -> dict[Position, Axis]:
    """Of a call that is given the size of each piece: which axis each has to be as long as."""
    stated = [position for position, number in call.numbers if len(position) == 2 and isinstance(number, int)]
    pieces = [literals[0].axes for literals in _sizes_of_pieces(trial, call)] if is_split(call) else []
    fitting = [axes for axes in pieces if len(axes) == len(stated)]
    return dict(zip(stated, fitting[0], strict=True)) if fitting else {}


def _sizes_near(trial: Trial, records: Sequence[Record]) -> Sizes:
    near = [axis for record in records for v in (*record.outputs, *record.inputs) for axis in v.axes]
    near += [axis for record in records for axis in record.literals.values()]
    return Sizes(trial.slicing.narrowed(near), trial.slicing.size)


def _attributes(
    trial: Trial, changes: Changes, failure: Failure, paths: Sequence[str], deep: bool, again: bool = False
) -> Iterator[Changes]:
    """Integers of the modules at `paths`: their own, or, `deep`, those of lists and objects that they hold."""
    for path in paths:
        choices = _choices(trial, path, failure.place, changes.edits, again)
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
            if not trial.is_of_inputs(call, position):  # at other sizes it has to be another one
                yield (Literal(call.path, call.site, position, (), number),)
        return
    given = dict(call.numbers)

    def moved(position: Position) -> bool:
        return position in failure.numbers and failure.lacks(position, given.get(position, 0))

    def whole(position: Position) -> bool:
        """Whether a number has to be stated as it is: it moves with no input's size, but maybe with a pruned one's.

        Cut by about half, a quotient of two sizes is often what it was before.
        """
        return not trial.is_of_inputs(call, position, unknown=not moved(position))

    records = trial.tape[call.start : call.stop]
    for position, order, axis in _orders(trial, call, failure):
        yield (Literal(call.path, call.site, position, (axis,), order=tuple(order)),)
    if is_split(call):
        yield from _sizes_of_pieces(trial, call)
    shape = records[-1].outputs[0].axes if records[-1].outputs else ()
    exact = list(_as_shape(call, shape))
    lacking = [position for position, axis in exact if failure.lacks(position, trial.slicing.size(axis))]
    stated = tuple(
        Literal(call.path, call.site, position, (axis,), absolute=whole(position))
        for position, axis in exact
        # What is right may be so at these widths alone, unless a size of the inputs and of a group have made it so.
        if position in lacking or (leaves(axis) and (whole(position) or not moved(position)))
    )
    if lacking and all(literal.absolute or leaves(literal.axes[0]) for literal in stated):
        yield stated
    sizes = _sizes_near(trial, records)
    options = [
        [
            Literal(call.path, call.site, position, (axis,), negative=number < 0, absolute=whole(position))
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


def _choices(trial: Trial, path: str, place: int, edits: Sequence[Edit], again: bool) -> list[tuple[Key, list[Axis]]]:
    """The integers of one module that an old size explains, and the axes that each may stand for.

    again: those that follow an axis already, which another axis of this length may have to replace.
    """
    slicing = trial.slicing
    near: list[Axis] = []
    for record in (*trial.tape[place : place + 1], *reversed(trial.tape[max(0, place - _NEAR) : place])):
        near += [axis for value in (*record.outputs, *record.inputs) for axis in value.axes]
        near += record.literals.values()
    prefix = f"{path}." if path else ""
    near += [a for name, axes in trial.coupling.structure.tensors.items() if name.startswith(prefix) for a in axes]
    sizes = Sizes(slicing.narrowed(near), slicing.size)
    known = {edit.attribute: edit.axes for edit in edits if edit.path == path}
    found = []
    for key, number in integers_of(modules_of(trial.module)[path]):
        if number > 1 and (key in known) == again:
            axes = [axis for axis in sizes.of(number) if (axis,) != known.get(key)]
            found += [(key, axes)] if axes else []
    return found


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
    """The axes that occur where the module cannot follow, with the reason that they stay.

    Where none occurs there, those of the module that ran stay, or the nearest before it: what no analysis follows (a
    function that torch.jit runs) fails where its result is used.
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
