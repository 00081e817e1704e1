"""`couple` for a module of any class: its groups, found by running it."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.analysis.module_facts import ModuleFacts
from passes.analysis.parameter_roles import as_used, names_of
from passes.analysis.reach import unused_axes
from passes.analysis.tape import Structure
from passes.axes.expressions import Axis, Reason, Variable
from passes.documents.described_values import Described
from passes.equality.padded_positions import check_padding
from passes.errors import PassError, SpecialisedWarning
from passes.graph.left_behind import left_behind
from passes.graph.module_copies import modules_of, parameters_among
from passes.process.state import drawn_in_python, generators_of
from passes.stream.call_arguments import Arguments, bound, describe_call, tensors_of
from passes.stream.call_log import LoggedCall
from passes.stream.module_run import Beside, ModuleInferred, infer_module
from passes.stream.other_sizes import other_sizes
from passes.transform.size_attributes import edits_of_copied_state
from passes.transform.slicing import Slicing
from passes.trial.corrections import changes_that_follow, refused_axes, stated_splits
from passes.trial.following import Failure
from passes.trial.module_trial import Changes, RealTrial, Trial
from passes.trial.other_modes import branches_on_mode, in_train_mode, look_at_kept_tensors, look_at_train_mode
from passes.trial.other_runs import (
    look_at_later_calls,
    look_at_more_values,
    look_at_other_arguments,
    look_at_other_branches,
    look_at_other_sizes,
    look_at_other_values,
    look_at_views,
)

_APART = 2  # the shift at which groups of one size differ that have only one smaller width
_TURNS = 4  # of trials at all widths, until nothing has to be corrected
_AT_ODDS = "no sizes were found with which it runs at two widths and on both sides of its conditions"


def couple_module(module: nn.Module, example_inputs: object) -> Coupling:
    """`couple` for a module."""
    if not isinstance(module, nn.Module):
        raise PassError(f"couple: got a {type(module).__name__}; expected a torch.nn.Module")
    arguments = bound(module, example_inputs)
    modules = modules_of(module)
    generators = generators_of(modules.values())
    before = drawn_in_python(generators)
    inferred = infer_module(module, arguments)
    if drawn_in_python(generators) != before:
        inferred.specialised.append(
            "forward draws random numbers of Python or NumPy, and was followed with some of them: what others lead to "
            "is not proven"
        )
    if not any(tensor.is_meta for tensor in tensors_of(arguments)):
        check_padding(module, arguments)
    look_at_kept_tensors(inferred, arguments)
    look_at_views(inferred, arguments)
    look_at_other_branches(inferred, arguments)
    if inferred.real:
        look_at_other_values(inferred, arguments)
    look_at_other_arguments(module, inferred, arguments)
    look_at_later_calls(inferred, arguments)
    parameters = parameters_among(modules)
    trainable = frozenset([name for name, _ in parameters])
    structure, unused = _reach_the_rest(inferred, arguments, trainable)
    inferred.specialised += left_behind(inferred.run.owned)
    changes, digest, looked = Changes(), _digest(modules, parameters), False
    while True:
        if unused:
            _freeze(inferred, unused)
            structure = Structure.of(inferred)
        coupling = _coupling(structure, inferred, digest, describe_call(arguments), trainable)
        trials = cache(partial(_trials, module, coupling, inferred, arguments, {}))
        if looked or not _look_elsewhere(module, inferred, arguments, trials):
            changes, refused = _tried(trials, changes.resolved(inferred.space.resolve))
            if not refused:
                break
            _freeze(inferred, refused)
        looked = True
        structure, unused = _unused(inferred, trainable)
    for sentence in inferred.specialised:
        warnings.warn(f"{type(module).__name__}: {sentence}", SpecialisedWarning, stacklevel=3)
    assert coupling.module is not None, "it was made for a module"
    coupling.module = replace(coupling.module, edits=changes.edits, literals=changes.literals)
    remember_module(module, coupling)
    if changes.literals:
        inferred.run.forget()  # what stands for a method refers to its module
    inferred.run.release()
    return coupling


Frozen = list[tuple[Axis, Reason]]


def _freeze(inferred: ModuleInferred, axes: Frozen) -> None:
    for axis, reason in axes:
        inferred.space.freeze(axis, reason)


def _reach_the_rest(
    inferred: ModuleInferred, arguments: Arguments, trainable: frozenset[str]
) -> tuple[Structure, Frozen]:
    """Where evaluation mode left parameters unused (auxiliary heads), run in train mode as well; where values decide
    what is used (experts), on other values.

    Returns what `_unused` does.
    """
    structure, unused = _unused(inferred, trainable)
    problem = ""
    if inferred.real and unused:
        look_at_more_values(inferred, arguments, lambda: len(_unused(inferred, trainable)[1]))
        structure, unused = _unused(inferred, trainable)
    if any(not reason.node.startswith("_") for _, reason in unused):
        problem = inferred.run_beside(arguments, training=True)
        if not problem:
            structure, unused = _unused(inferred, trainable)
    if unused:
        names = list(dict.fromkeys(reason.node for _, reason in unused))
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        why = f"it does not run in train mode: {problem}" if problem else "in neither mode"
        inferred.specialised.append(f"of {shown} not all was used, {why}; calls that use it may not fit what is cut")
    return structure, unused


def _unused(inferred: ModuleInferred, trainable: frozenset[str]) -> tuple[Structure, Frozen]:
    """The axes as they stand, and those of parameters of which the runs so far left some units out."""
    structure = Structure.of(inferred)
    own = [name for name in _own(inferred) if name in trainable]
    return structure, list(unused_axes(structure.tensors, own, structure.all_records))


def _own(inferred: ModuleInferred) -> list[str]:
    """The names of tensors, tied ones once."""
    return [name for name, first in inferred.canonical.items() if first == name]


def _coupling(
    structure: Structure, inferred: ModuleInferred, digest: str, inputs: list[Described], trainable: frozenset[str]
) -> Coupling:
    turned = tuple(run.turned for run in inferred.runs_beside if run.turned)
    facts = ModuleFacts(real=inferred.real, specialised=tuple(inferred.specialised), turned=turned)
    own = as_used(_own(inferred), structure.all_records)
    names = names_of(structure.tensors, structure.roles, own, trainable)
    return Coupling(structure, names, digest, inputs, {}, inferred.canonical, trainable, module=facts)


def _trials(
    module: nn.Module, coupling: Coupling, inferred: ModuleInferred, arguments: Arguments,
    logs: dict[tuple[bool, str], list[LoggedCall]], shift: int,
) -> list[Trial]:  # fmt: skip
    """A trial of each run with every group reduced at once; `shift` says to which widths. logs: see `Trial`."""
    if not coupling.variables:
        return []
    kind, slicing = RealTrial if inferred.real else Trial, Slicing(coupling, _masks(coupling, shift))
    return [
        kind(
            module, inferred.run, coupling, run.arguments, slicing, run.records, run.training, run.turned, run.later,
            logs,
        )
        for run in (Beside(inferred.records, arguments, False), *inferred.runs_beside)
    ]  # fmt: skip


def _look_elsewhere(
    module: nn.Module, inferred: ModuleInferred, arguments: Arguments, trials_at: Callable[[int], list[Trial]]
) -> bool:
    """Look at the module at other sizes of its inputs and in train mode; whether that showed something new.

    One run says that there is nothing where the cut module makes the same calls at such sizes with the answers of train
    mode: then neither the cut, nor these, nor the mode change any.
    """
    resized = None if inferred.real else next(other_sizes(arguments), None)
    in_both = any(run.training for run in inferred.runs_beside)
    branches = not in_both and branches_on_mode(module)
    mode = in_train_mode if branches else None
    # Without other sizes none is made: it would be in vain where train mode shows something.
    if resized is not None and any(t.runs_at(t.unread(Changes()), resized, mode) for t in trials_at(0)[:1]):
        return False
    shown = branches and look_at_train_mode(inferred, arguments)
    return (not inferred.real and look_at_other_sizes(inferred, arguments)) or shown


def _tried(trials_at: Callable[[int], list[Trial]], changes: Changes) -> tuple[Changes, Frozen]:
    """What follows in the module when every group is reduced at once; or the axes that cannot, with reasons.

    A second trial with other widths follows where something was found: two groups of one size may have had one width.
    Where such groups have one smaller width, some of them stay whole in it. What it corrects is tried at the first
    widths again.
    changes: what was found before some axes were frozen.
    """
    trials = trials_at(0)
    if not trials:
        return changes, []
    changes = stated_splits(trials) + changes
    if not changes:
        unread = trials[0].unread(changes)
        splits = any(record.func is torch.ops.aten.split.Tensor for trial in trials for record in trial.tape)
        tried = [*trials, *trials_at(1)] if splits else trials
        if all(trial.run(unread) is None and not trial.moved for trial in tried):
            return unread, []
    shifts = (0, _APART if _alike(trials[0].coupling) else 1)
    for more in map(trials_at, shifts):
        for trial in more:
            changes, failure = changes_that_follow(trial, changes)
            if failure is not None:
                return changes, _refused(trial, failure)
    trials = [trial for shift in shifts for trial in trials_at(shift)]
    changes += Changes(tuple(edits_of_copied_state(trials[0].module, changes.edits)))
    unread = trials[0].unread(changes)
    at_root = Changes(tuple(edit for edit in unread.edits if not edit.path))
    for further in (changes + unread, changes + at_root):
        if all(trial.run(further) is None for trial in trials):
            changes = further
            break
    for turn in range(_TURNS):
        settled = True
        for trial in trials:
            found, failure = changes_that_follow(trial, changes)
            settled &= found == changes
            changes = found
            if failure is not None or (turn == _TURNS - 1 and not settled):
                failure = failure or Failure(0, _AT_ODDS, "", "")
                return changes, _refused(trial, failure)
        if settled:
            break
    return changes, []


def _refused(trial: Trial, failure: Failure) -> Frozen:
    refused = refused_axes(trial, failure)
    if not refused:
        place = f"{failure.path or 'forward'} ({failure.source})"
        raise PassError(f"{type(trial.module).__name__}: {place}: {failure.text}")
    return refused


def _masks(coupling: Coupling, shift: int) -> dict[Variable, np.ndarray]:
    """Every group reduced, groups of one size to different widths as far as there are any.

    Shifted, later units stay, from an odd one on (what alternates must not come out alike), and of two groups the one
    that was the wider is the narrower: a split by one size may give as many pieces as before while the last is small.
    Shifted by `_APART`, every other one of those that have one smaller width stays whole.
    """
    masks, met = {}, Counter[int]()
    for variable in coupling.variables.values():
        size = variable.size
        below = _below(coupling, variable)
        if not below:
            continue  # all its experts are chosen
        if shift == _APART and len(below) == 1 and met[size] % 2 == 0:
            met[size] += 1
            continue
        widths = below[: max(1, len(below) // 2 * 2)]  # an even number: then no group has one width in both
        width = _far(widths, -1 - met[size] if shift else met[size])
        met[size] += 1
        first = (size - width - 1) // 2 * 2 + 1 if shift else 0
        masks[variable] = mask = np.zeros(size, dtype=bool)
        mask[first : first + width] = True
    return masks


def _below(coupling: Coupling, variable: Variable) -> range:
    """The smaller widths with which a group is tried, the widest first."""
    size, least = variable.size, coupling.least.get(variable, 1)
    return range(size - 1, max(size // 2 - 1, 1, least - 1), -1) if size > 2 else range(1, least - 1, -1)


def _alike(coupling: Coupling) -> bool:
    """Whether two groups of one size have one and the same smaller width, so that in no trial they differ."""
    sizes = Counter(v.size for v in coupling.variables.values() if v.size > 1 and len(_below(coupling, v)) == 1)
    return any(count > 1 for count in sizes.values())


def _far(widths: range, number: int) -> int:
    """One of these widths (each one less than that before), counted around: odd ones first, from about half upwards.

    Sizes that a program divides or rounds differ there.
    """
    rising = widths[::-1]
    first = rising[0] % 2 == 0  # where the odd ones begin
    odd, even = rising[first::2], rising[not first :: 2]
    number %= len(widths)
    return odd[number] if number < len(odd) else even[number - len(odd)]


def module_fingerprint(module: nn.Module) -> str:
    """A digest of a module's classes and of its parameters' shapes: equal for equal networks, whatever the weights.

    Other tensors are left out: those that a module keeps of its last call change their shapes from call to call.
    """
    modules = modules_of(module)
    return _digest(modules, parameters_among(modules))


def _digest(modules: Mapping[str, nn.Module], parameters: Sequence[tuple[str, torch.Tensor]]) -> str:
    lines = [f"{path}|{type(part).__module__}.{type(part).__qualname__}" for path, part in modules.items()]
    lines += [f"{name}|{list(tensor.shape)}" for name, tensor in parameters]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


_couplings: weakref.WeakKeyDictionary[nn.Module, tuple[Coupling, str]] = weakref.WeakKeyDictionary()


def remember_module(module: nn.Module, coupling: Coupling) -> None:
    """Keep the coupling of `module` for later passes."""
    _couplings[module] = coupling, coupling.fingerprint


def recall_module(module: nn.Module) -> Coupling | None:
    """The coupling that was last found for `module`, unless its shape has changed since."""
    coupling, digest = _couplings.get(module, (None, ""))
    return coupling if digest == module_fingerprint(module) else None
