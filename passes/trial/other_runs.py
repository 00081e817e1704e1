"""What the example fixed: the module is run at another size and on other values, and its operators are compared.

The same operators in the same order say that nothing else has to hold. Others are a branch, on a size or on data: what
they state holds beside what the example stated, and the branch is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from passes.axes.expressions import Axis, Reason
from passes.equality.draws import draws, extremes
from passes.graph.left_behind import Plain, counts, set_state
from passes.ops import Record, Value, spelled
from passes.ops.facts import VIEWS, facts_of
from passes.process.torch_private import OpOverload
from passes.stream.call_arguments import CHANGED, Arguments, replaced, tensors_of
from passes.stream.call_log import WithoutDropout
from passes.stream.conditions import SizeConditions
from passes.stream.module_run import ModuleInferred, ModuleRun
from passes.stream.module_stream import Watching, input_on_meta
from passes.stream.other_sizes import other_sizes
from passes.trial.following import cut_at, cut_dimension, cuts_units, owned, without_tensors

aten = torch.ops.aten
_SIZE = "the size of the inputs"
_MOST_CONDITIONS = 8
_OTHER_VALUES = 3  # seeds of other values, where a program asks for values
_MOST_VALUES = 20  # of these, where each shows more
_IN_VAIN = 10  # runs that show no more, after which no others are made


def look_at_other_sizes(inferred: ModuleInferred, arguments: Arguments) -> bool:
    """Run the module with other sizes of its inputs; whether that showed something which the example did not.

    Where it calls other operators, what these state holds as well. So does what it calls where a condition that
    compares such sizes gets the other answer.
    """
    sizes = other_sizes(arguments)
    for resized in sizes:
        conditions = SizeConditions()
        found = _calls_at(inferred.run, resized, conditions=conditions)
        if found is None:  # a program may refuse integers of another class
            conditions, found = SizeConditions(), _calls_at(inferred.run, resized)
        if found is None:
            continue
        moving = _moving(inferred, found, _SIZE)
        if moving is None and _run_at_others(inferred, sizes, resized, found):
            inferred.specialised.append("its program calls other operators at other sizes of the inputs")
        turned = _look_at_conditions(inferred, arguments, conditions)
        return turned or moving is None or bool(_frozen(inferred, moving))
    return False


def _run_at_others(inferred: ModuleInferred, sizes: Iterable[Arguments], far: Arguments, found: list[Any]) -> bool:
    """Run the module at nearer sizes where its calls differ as well, and at `far` ones where these are of other kinds.

    sizes: the nearer ones. found: the calls at `far`. Returns whether it runs.
    """
    calls = found
    for near in sizes:
        if inferred.run_beside(near):
            continue
        others = _calls_of(inferred.runs_beside[-1].records)
        moving = _moving(inferred, others, _SIZE)
        if moving is None:
            runs, calls = True, others
            break
        inferred.runs_beside.pop()
        _frozen(inferred, moving)
    else:
        runs = not inferred.run_beside(far)
    if not _kinds(found) <= _kinds(calls) | _kinds(_calls_of(inferred.records)):
        runs |= not inferred.run_beside(far)
    return runs


def _kinds(calls: Sequence[Any]) -> set[Any]:
    """Which operators are called, of which tensors of the module."""
    return {call[:2] for call in calls}


def look_at_views(inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run the module at other sizes too where a view joins units with a size of the inputs: it may cut elsewhere there.

    What it states at these sizes holds as well.
    """
    if inferred.real or not any([record.crossed and record.func in VIEWS for record in inferred.records]):
        return
    records = [record for record in inferred.records if record.func in VIEWS]
    for resized in other_sizes(arguments):
        mode = _Views()
        if not _ran(inferred.run, mode, resized) or len(records) != len(mode.shapes):
            continue
        if any(_moves_across(record, shape) for record, shape in zip(records, mode.shapes, strict=True)):
            inferred.run_beside(resized)


def _moves_across(record: Record, shape: Sequence[int]) -> bool:
    """Whether dimensions that a view cuts across have other sizes in this shape of its operand."""
    sizes = [axis.size for axis in record.inputs[0].axes]
    return len(sizes) != len(shape) or any(sizes[dim] != shape[dim] for dim in record.crossed)


class _Views(Watching):
    """Keeps the shapes of what is viewed; infers no axes."""

    def __init__(self) -> None:
        super().__init__(real=False)
        self.shapes: list[torch.Size] = []

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        if func in VIEWS:
            self.shapes.append(operands[0].shape)


def look_at_other_arguments(module: nn.Module, inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run `module` with each flag and number of its arguments changed; name those that it may branch on.

    Parameters of which an argument says how many positions are used keep all of them.
    """
    for name, value, known, others in _changed_arguments(module, arguments):
        found = None if inferred.real else _calls_at(inferred.run, _on_meta(others))
        if not _are_alike(inferred, found, f"its argument {name}"):
            inferred.specialised.append(f"its argument {name} is {value!r}, {known}")
    left_out = _left_out(module, arguments)
    if left_out:
        inferred.specialised.append(f"its arguments {', '.join(left_out)} were not given")


def calls_made_of(
    inferred: ModuleInferred, arguments: Arguments, set_mode: Callable[[nn.Module], None]
) -> tuple[list[Any] | None, list[Any]]:
    """The calls that a module makes, dropout apart, once `set_mode` has put its copy in another mode, None where it
    does not run so; beside them those of the tape. The copy is in eval mode again afterwards."""
    mode = _Calls(inferred.real)
    try:
        ran = _ran(inferred.run, mode, arguments, prepare=set_mode, functions=WithoutDropout(mode))
    finally:
        inferred.run.copy.eval()
    return mode.calls if ran else None, _calls_of(inferred.records)


def look_at_later_calls(inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run the module with each attribute that forward changes at a later value; name those that it branches on."""
    for name, value in inferred.counted.items():
        found = None if inferred.real else _calls_at(inferred.run, _on_meta(arguments), {name: value})
        if not _are_alike(inferred, found, f"the attribute {name}"):
            inferred.specialised.append(counts(name))


def _changed_arguments(module: nn.Module, arguments: Arguments) -> Iterator[tuple[str, object, str, Arguments]]:
    """Each argument that is a flag or a number: its name and value, where that is from, and others for the call.

    Without those that forward takes under no name.
    """
    try:
        signature: Any = inspect.signature(module.forward)
        example = signature.bind(*arguments[0], **arguments[1])
    except (TypeError, ValueError):  # a forward without a signature
        return
    for name, parameter in signature.parameters.items():
        value = example.arguments.get(name, parameter.default)
        if type(value) not in CHANGED:
            continue
        changed = dict(example.arguments) | {name: CHANGED[type(value)](value)}
        named = {key: changed[key] for key in signature.parameters if key in changed}  # in the order of forward
        others = inspect.BoundArguments(signature, named)
        known = "as in the example" if name in example.arguments else "its default"
        yield name, value, known, (others.args, others.kwargs)


def _left_out(module: nn.Module, arguments: Arguments) -> list[str]:
    """The arguments that forward takes and the example leaves out."""
    try:
        signature: Any = inspect.signature(module.forward)
        given = signature.bind(*arguments[0], **arguments[1]).arguments
    except (TypeError, ValueError):  # a forward without a signature
        return []
    return [name for name, p in signature.parameters.items() if p.default is None and given.get(name) is None]


def _on_meta(arguments: Arguments) -> Arguments:
    return replaced(arguments, {id(t): input_on_meta(t) for t in tensors_of(arguments)})


def _moving(inferred: ModuleInferred, found: Sequence[Any], with_what: str) -> list[tuple[Axis, Reason]] | None:
    """The axes of units of which a run uses as many as an input is long, or as an argument says, and why all stay.

    None where a run did not make the calls of the tape, with the same tensors of the module, and as many others.
    """
    records, known = _compared(inferred.records), _calls_of(inferred.records)
    if [call[:2] for call in found] != [call[:2] for call in known]:
        return None
    text = f"it is cut at a position that moves with {with_what}"
    return [
        (record.inputs[0].axes[cut_dimension(record)], Reason(text, record.node, spelled(record.func)))
        for record, before, call in zip(records, known, found, strict=True)
        if call != before and cuts_units(record)
    ]


def _frozen(inferred: ModuleInferred, axes: list[tuple[Axis, Reason]]) -> list[tuple[Axis, Reason]]:
    for axis, reason in axes:
        inferred.space.freeze(axis, reason)
    return axes


def _are_alike(inferred: ModuleInferred, found: Sequence[object] | None, with_what: str) -> bool:
    """Whether a run made the calls of the tape; parameters that it cuts elsewhere keep all positions then."""
    moving = None if found is None else _moving(inferred, found, with_what)
    _frozen(inferred, moving or [])
    return moving is not None


def look_at_other_branches(inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run a module once for each condition on values with the other answer; on sizes too, where it runs on values."""
    _turn(inferred, arguments, list(inferred.run.mode.asked))
    for draw in draws(arguments) if inferred.real else ():
        conditions = SizeConditions()
        resized = _in_own_types(arguments, draw.inputs)
        if draw.varies and _ran(inferred.run, Watching(True), resized, conditions=conditions):
            _look_at_conditions(inferred, arguments, conditions)
            break


def _turn(inferred: ModuleInferred, arguments: Arguments, lines: Sequence[str]) -> bool:
    """Run a module once for each of these conditions with the other answer; whether it called others then.

    What it calls then holds as well.
    """
    if not lines:
        return False
    before = len(inferred.runs_beside)
    given = [without_tensors(record.template) for record in _compared(inferred.records)]
    known = list(zip(_calls_of(inferred.records), given, strict=True))
    followed = max(0, _MOST_CONDITIONS - inferred.turned)
    for line in lines[:followed]:
        mode = _Calls(inferred.run.mode.real)
        if _ran(inferred.run, mode, arguments, turned=line) and list(zip(mode.calls, mode.given, strict=True)) != known:
            inferred.run_beside(arguments, turned=line)
    inferred.turned += len(lines)
    if len(lines) > followed:
        rest = ", ".join(lines[followed:][:3])
        inferred.specialised.append(f"conditions at {rest} were followed as the example answers them, alone")
    return len(inferred.runs_beside) > before


def _look_at_conditions(inferred: ModuleInferred, arguments: Arguments, elsewhere: SizeConditions) -> bool:
    """Follow the conditions that other sizes enter on the example than elsewhere with the other answer.

    Tables in which a size is looked up are named. Returns what `_turn` does.
    """
    here = SizeConditions()
    if not elsewhere.any or not _ran(inferred.run, Watching(inferred.real), arguments, conditions=here):
        return False
    tables = [line for line, sizes in here.looked_up.items() if elsewhere.looked_up.get(line, sizes) != sizes]
    if tables:
        lines = ", ".join(tables[:3])
        inferred.specialised.append(f"it looks up sizes of its inputs in a table ({lines}), as those of the example")
    moving = [name for name, sizes in here.asked.items() if elsewhere.asked.get(name, sizes) != sizes]
    return _turn(inferred, arguments, moving)


def look_at_other_values(inferred: ModuleInferred, arguments: Arguments) -> None:
    """Run a module whose program asks for values on others than the example's.

    Of runs that make the same calls, two are kept for trials: what they state is the same, sizes made of values apart.
    """
    expected, known = [record.func for record in inferred.records], [_calls_of(inferred.records)]
    branches = False
    drawn = [draw for seed in range(_OTHER_VALUES) for draw in draws(arguments, seed, runs=2)]
    for draw in (*drawn, *extremes(arguments)):
        if draw.required or draw.varies or inferred.run_beside(_in_own_types(arguments, draw.inputs)):
            continue
        records = inferred.runs_beside[-1].records
        calls = _calls_of(records)
        branches |= [record.func for record in records] != expected
        if known.count(calls) == 2:
            inferred.runs_beside.pop()
        known.append(calls)
    if branches:
        inferred.specialised.append("its program branches on the values of the inputs")


def look_at_more_values(inferred: ModuleInferred, arguments: Arguments, unused: Callable[[], int]) -> None:
    """Run a module whose program asks for values on still others, while these use more of its parameters: experts to
    which no token went before. unused: how many are not used so far."""
    left, in_vain = unused(), 0
    drawn = (draw for seed in range(_OTHER_VALUES, _MOST_VALUES) for draw in draws(arguments, seed, runs=2))
    for draw in drawn:
        if not left or in_vain == _IN_VAIN:
            return
        if draw.required or inferred.run_beside(_in_own_types(arguments, draw.inputs)):
            continue
        now = unused()
        if now == left:
            inferred.runs_beside.pop()
        left, in_vain = now, in_vain + 1 if now == left else 0


class _Calls(Watching):
    """Keeps which operators are called, and where they cut; infers no axes."""

    def __init__(self, real: bool) -> None:
        super().__init__(real)
        self.calls: list[Any] = []
        self.given: list[object] = []  # to each of them, without its tensors

    def watch(self, func, args, kwargs, operands, outputs) -> None:
        before = list(map(self.value, operands))
        static = bool(before) and all([value.parameters for value in before])
        if not facts_of(func).is_copy:
            self.calls.append(_call(func, before, args))
            self.given.append(without_tensors((args, kwargs)))
        names = frozenset().union(*[value.parameters for value in before]) if static else frozenset()
        for tensor in outputs:
            if not any(tensor is operand for operand in operands):
                self.attach(tensor, Value("", (), names))


def _call(func: OpOverload, operands: Sequence[Value], args: tuple) -> Any:
    """What is compared of a call: its operator, the module's tensors among its operands, where it cuts."""
    return aten.view.default if facts_of(func).is_view else func, owned(operands), cut_at(func, args)


def _compared(records: Sequence[Record]) -> list[Record]:
    """The calls of a tape that other runs have to make as well."""
    return [record for record in records if not facts_of(record.func).is_copy]


def _calls_of(records: Sequence[Record]) -> list[Any]:
    """What is compared of the calls of a tape."""
    return [_call(record.func, record.inputs, record.template[0]) for record in _compared(records)]


def _calls_at(
    run: ModuleRun, arguments: Arguments, state: Mapping[str, Plain] = MappingProxyType({}),
    conditions: SizeConditions | None = None,
) -> list[Any] | None:  # fmt: skip
    """The calls that a module makes on these inputs; None where it does not take them.

    state: of its attributes. conditions: lists those on sizes.
    """
    mode = _Calls(False)
    prepare = partial(set_state, values=state)
    return mode.calls if _ran(run, mode, arguments, prepare=prepare, conditions=conditions) else None


def _ran(run: ModuleRun, mode: Watching, arguments: Arguments, **how: Any) -> bool:
    """Whether a module runs once more under `mode`. how: see `ModuleRun.again`."""
    try:
        run.again(mode, arguments, **how)
    except Exception:  # what a module raises at a size that it does not take, or on integers of another class
        return False
    return True


def _in_own_types(arguments: Arguments, drawn: object) -> Arguments:
    """What was drawn (in double precision) in the types of the example."""
    pairs = zip(tensors_of(arguments), tensors_of(drawn), strict=True)
    own = {id(there): there.to(here.dtype) for here, there in pairs}
    made: Arguments = replaced(drawn, own)
    return made
