"""The residual branches of a module that can be taken out of it, found by running it with and without them.

Which calls a branch makes the tape says (`passes.analysis.residual_blocks`). Here they are found among the modules
that made them: a module that is no more than ``g(x + f(x))`` is shortened, else those that the branch is made of are
silenced (`passes.stream.skipped_branches`). The module then runs so, in both modes, with and without gradients, and its
results must keep their shapes; and it runs once as users call it, with the kernels that torch takes then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.analysis.residual_blocks import Block, Blocks, addends, find_blocks
from passes.axes.expressions import Reason
from passes.graph.left_behind import plain_state
from passes.graph.module_copies import modules_of, owned_tensors
from passes.ops import Record, Slot, Value, spelled
from passes.process.source_lines import said
from passes.process.torch_private import hooks_of, no_torch_function, pytree
from passes.stream.call_arguments import Arguments, replaced, tensors_of
from passes.stream.module_run import ModuleRun, analysing_run
from passes.stream.network_copies import apart
from passes.stream.restated_calls import RestatedForward
from passes.stream.results import tensors_in
from passes.stream.skipped_branches import (
    Detached,
    Given,
    Result,
    Shortened,
    Silenced,
    Silent,
    Step,
    WithoutBranch,
    detach,
)  # fmt: skip

_KEEPS = ("cache", "past")  # what an argument is called that keeps something for later calls


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its path, the calls of operators that it made, its tensor arguments, and its result.

    given: the tensor arguments with their keys. result: with the key of each tensor in its place.
    """

    path: str
    start: int
    stop: int
    given: tuple[tuple[Given, int], ...]
    result: Any

    def within(self, numbers: Iterable[int]) -> bool:
        """Whether it made calls, and only such."""
        return self.start < self.stop and set(range(self.start, self.stop)) <= set(numbers)


@dataclass(frozen=True)
class _Key:
    """The key of a tensor, where the tensor was."""

    number: int


class Mode(NamedTuple):
    """How a module is run: in train mode, and with gradients recorded."""

    training: bool = False
    gradients: bool = False


EVALUATION = Mode()


@dataclass
class Observed:
    """One run: its calls of operators, its calls of modules, and what was seen afterwards.

    kept: by name, tensors that modules keep of the run. changed: attributes that it changed.
    """

    records: list[Record]
    calls: list[ModuleCall]
    outputs: list[Value]
    kept: dict[str, int]
    changed: set[str]


@torch.inference_mode(False)
def module_blocks(module: nn.Module, coupling: Coupling, arguments: Arguments) -> Blocks:
    """What `couple(module, ..., depth=True)` offers, and why other branches stay."""
    assert coupling.module is not None, "it was made for a module"
    if coupling.module.real:
        return _none("its program asks for values, which may come of any branch")
    run = analysing_run(module, real=False)
    try:
        dense = observed(run, arguments)
    except Exception as error:  # what a module raises on inputs made anew
        return _none(f"it does not run on inputs of the shapes that it was coupled for: {said(error)}")
    known = [(record.node, record.func) for record in coupling.structure.records]
    if [(record.node, record.func) for record in dense.records] != known:
        return _none("its program does not call the same operators when it runs once more")
    others = []
    for mode in (Mode(training=True), Mode(gradients=True)):
        try:
            others.append((observed(run, arguments, mode), mode))
        except Exception:  # it has no such mode, in which nothing is proven either
            continue
    outputs = [value.key for value in dense.outputs] + list(dense.kept.values())
    tensors, aliases = coupling.structure.tensors, coupling.aliases
    found = find_blocks(dense.records, outputs, tensors, aliases, coupling.trainable)
    trial = _Trial(module, run, arguments, [(dense, EVALUATION), *others], aliases)
    refused, offered = dict(found.refused), dict[str, Block]()
    ways = {name: trial.ways(block) for name, block in found.offered.items()}
    first = {name: replace(found.offered[name], taken=way[0]) for name, (way, _) in ways.items() if way}
    if first and not trial.failure(list(first.values())):
        offered = first
    else:
        for name, block in first.items():
            for way in ways[name][0]:
                offered[name] = replace(block, taken=way)
                if not (why := trial.failure([offered[name]])):
                    break
            else:
                del offered[name]
                ways[name] = [], why
        if len(offered) > 1 and (why := trial.failure(list(offered.values()))):
            return _none(f"not all branches can go at once: {why}")
    for name, block in found.offered.items():
        if name not in offered:
            refused[name] = Reason(ways[name][1], dense.records[block.sum].node, "add")
    return Blocks({name: offered[name] for name in found.offered if name in offered}, refused)


def _none(why: str) -> Blocks:
    return Blocks({}, {"": Reason(why)})


def observed(
    run: ModuleRun, arguments: Arguments, mode: Mode = EVALUATION,
    prepare: Callable[[nn.Module], None] = lambda copied: None,
) -> Observed:  # fmt: skip
    """Run once, seeing which module makes which calls. prepare: is given the copy first."""
    run.forget()
    run.mode.records.clear()
    prepare(run.copy)
    before = plain_state(run.copy)
    owned = {id(tensor) for _, tensor in owned_tensors(run.copy)}
    calls: list[ModuleCall] = []
    paths = {part: path for path, part in reversed(list(modules_of(run.copy).items()))}
    for part, path in paths.items():
        _watch(part, path, run, calls)
    _, outputs, result = run.run(arguments, mode.training, gradients=mode.gradients)
    stream = run.mode
    returned = [*outputs, *map(stream.value, tensors_in(result, caches=True))]  # the caches of a result as well
    kept = {n: stream.value(tensor).key for n, tensor in owned_tensors(run.copy) if id(tensor) not in owned}
    after = plain_state(run.copy)
    changed = {name for name in after if after[name] != before.get(name, after[name])}
    return Observed(list(stream.records), calls, returned, kept, changed)


def _watch(part: nn.Module, path: str, run: ModuleRun, calls: list[ModuleCall]) -> None:
    inner = part.__dict__.get("_call_impl")
    if inner is None:  # a scripted module, or one that stands for another
        return

    names, mode = list(_parameters_of(part)), run.mode

    def key(tensor: torch.Tensor) -> _Key:
        with no_torch_function():
            return _Key(mode.value(tensor).key)

    def call(*args: Any, **kwargs: Any) -> Any:
        start, number = len(mode.records), len(calls)
        placed = [(Given(n, names[n] if n < len(names) else ""), value) for n, value in enumerate(args)]
        placed += [(Given(-1, name), value) for name, value in kwargs.items()]
        given = tuple((where, key(value).number) for where, value in placed if isinstance(value, torch.Tensor))
        calls.append(ModuleCall(path, start, start, given, None))
        result = inner(*args, **kwargs)
        keys = pytree.tree_map_only(torch.Tensor, key, result)
        calls[number] = ModuleCall(path, start, len(mode.records), given, keys)
        return result

    part.__dict__["_call_impl"] = call


def _parameters_of(part: nn.Module) -> Sequence[str]:
    try:
        return list(inspect.signature(part.forward).parameters)
    except (TypeError, ValueError):  # a forward without a signature
        return ()


class _Trial:
    """Finds how each branch is taken out, and runs the module without branches.

    seen: the runs of the whole module with the mode of each, first the one in evaluation without gradients.
    """

    def __init__(
        self, module: nn.Module, run: ModuleRun, arguments: Arguments, seen: Sequence[tuple[Observed, Mode]],
        aliases: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.module, self.modules, self.run, self.arguments = module, modules_of(module), run, arguments
        self.seen, self.dense, self.aliases = seen, seen[0][0], aliases

    def ways(self, block: Block) -> tuple[list[tuple[Detached, ...]], str]:
        """How a branch might be taken out, or why it cannot be."""
        inside = [call for call in self.dense.calls if call.within(block.calls)]
        parts = {call.path: call for call in inside if not any(_holds(other, call) for other in inside)}
        for path in parts:
            if why := self._holds_back(path):
                return [], why
        shortened = self._shortened(block)
        if shortened is not None:
            return [(shortened,)], ""
        for path in parts:
            if any(call.path == path and not call.within(block.calls) for call in self.dense.calls):
                return [], f"{path} is called elsewhere too"
        held = [name for name in block.tensors if not any(_is_below(name, path) for path in parts)]
        if held:
            return [], f"{held[0]} belongs to a module that does more than the branch"
        silent = {number for call in inside for number in range(call.start, call.stop)}
        own = [number for number in sorted(block.calls - silent) if self.dense.records[number].macs]
        if own:
            return (
                [],
                f"{self.dense.records[own[0]].node} multiplies for it, in a module that does more than the branch",
            )
        silenced = []
        for call in parts.values():
            made = self._silenced(call)
            if isinstance(made, str):
                return [], made
            silenced.append(made)
        return [tuple(silenced), tuple(replace(one, whole=True) for one in silenced)], ""

    def _holds_back(self, path: str) -> str:
        """Why a module has to run."""
        for inner, part in self.modules.items():
            if not _is_below(inner, path):
                continue
            if _is_wrapped(part):
                return f"{inner} has hooks or another forward than its class, which would not run"
            kept = [name for name in _parameters_of(part) if any(word in name for word in _KEEPS)]
            if kept:
                return f"{inner} takes {kept[0]}, in which it may keep what later calls count on"
        changed = [name for name in self.dense.changed if _is_below(name, path)]
        return f"its forward changes {changed[0]}" if changed else ""

    def _shortened(self, block: Block) -> Shortened | None:
        """The innermost module around the sum, where it is no more than ``g(x + f(x))``."""
        dense, total = self.dense, block.sum
        around = [call for call in dense.calls if call.start <= min(block.calls) and total < call.stop]
        holder = min(around, key=lambda call: call.stop - call.start)
        before = set(range(holder.start, total)) - block.calls
        same = [call for call in dense.calls if call.path == holder.path]
        if before or len(same) > 1 or not holder.path:
            return None
        other = addends(dense.records[total], block.operand)[1].key
        given = next((given for given, key in holder.given if key == other), None)
        found = self._steps(holder, total)
        if given is None or found is None or _is_wrapped(self.modules[holder.path]):
            return None
        steps, last = found
        result = _template(holder.result, last)
        if result is None:
            return None
        used = {step.module for step in steps}
        prefix = f"{holder.path}."
        gone = [name[len(prefix) :] for name in block.tensors if name.startswith(prefix)]
        children = [
            path[len(prefix) :]
            for path, part in self.modules.items()
            if path.startswith(prefix)
            and any(call.path == path and call.within(block.calls) for call in dense.calls)
            and not any(_is_below(f"{prefix}{step}", path) for step in used if step)
        ]
        children = [path for path in children if not any(path.startswith(f"{other}.") for other in children)]
        own = [name for name in gone if not any(_is_below(name, path) for path in children)]
        return Shortened(holder.path, given, steps, result, (*children, *own))

    def _steps(self, holder: ModuleCall, total: int) -> tuple[tuple[Step, ...], int] | None:
        """What a module does with the sum until it returns: the steps, and the key of the last result."""
        records = self.dense.records
        key, place, steps = records[total].outputs[0].key, total + 1, list[Step]()
        below = [c for c in self.dense.calls if c.path.startswith(f"{holder.path}.") and c.start > total]
        below = [c for c in below if not any(_holds(other, c) for other in below)]
        for call in below:
            if call.start > place:
                taken = _own_steps(records[place : call.start], key)
                if taken is None:
                    return None
                steps, key = steps + taken[0], taken[1]
            if not (isinstance(call.result, _Key) and len(call.given) == 1 and call.given[0][1] == key):
                return None
            steps.append(Step(module=call.path[len(holder.path) + 1 :]))
            key, place = call.result.number, call.stop
        taken = _own_steps(records[place : holder.stop], key)
        return None if taken is None else (tuple(steps + taken[0]), taken[1])

    def _silenced(self, call: ModuleCall) -> Silenced | str:
        if not call.given:
            return f"{call.path} is given no tensor whose shape its zeros could have"
        leaves = pytree.tree_leaves(call.result)
        odd = [leaf for leaf in leaves if not isinstance(leaf, (_Key, int, float, str, bool, type(None)))]
        if odd:
            return f"{call.path} returns a {type(odd[0]).__name__}"
        result = pytree.tree_map_only(_Key, lambda _: Result(), call.result)
        return Silenced(call.path, call.given[0][0], result)

    def failure(self, blocks: Sequence[Block]) -> str:
        """Why the module does not run without these branches; "" where it does, in all modes and as users call it."""
        for dense, mode in self.seen:
            try:
                found = observed(self.run, self.arguments, mode, lambda copied: _detach(copied, blocks))
            except Exception as error:  # whatever the user's program raises without them
                return f"without the branch the module does not run: {said(error)}"
            gone = {tensor for block in blocks for tensor in block.tensors}
            held = [name for name, _ in owned_tensors(self.run.copy) if self.aliases.get(name) in gone]
            if held:
                return f"{held[0]} is held in a second place"
            shapes, others = ([_shape(value) for value in seen.outputs] for seen in (dense, found))
            if shapes != others:
                return f"without the branch the module returns shapes {others}, not {shapes}"
            for block in blocks:
                if why := _tail_differs(block, self.dense, dense, found):
                    return why
        if not self.runs_as_called:
            return ""
        try:
            self._call(blocks)
        except Exception as error:  # whatever the user's program raises without them
            return f"without the branch the module does not run as it is called: {said(error)}"
        return ""

    @cached_property
    def runs_as_called(self) -> bool:
        """Whether the whole module runs on its own weights and on the example's values."""
        tensors = [*tensors_of(self.arguments), *(tensor for _, tensor in owned_tensors(self.module))]
        if any(tensor.is_meta for tensor in tensors):
            return False
        try:
            self._call(())
        except Exception:  # zeros in the place of the example, say, which it does not take
            return False
        return True

    def _call(self, blocks: Sequence[Block]) -> None:
        """Run a copy without these branches where no mode sees it: kernels hide their operators then."""
        given = {id(tensor): tensor.detach().clone() for tensor in tensors_of(self.arguments)}
        args, kwargs = replaced(self.arguments, given)
        with apart(self.module) as copied, torch.no_grad():
            _detach(copied, blocks)
            copied(*args, **kwargs)


def _is_wrapped(part: nn.Module) -> bool:
    """Whether something else than the forward of its class runs when a module is called."""
    if isinstance(part, Silent):  # it stands for a branch that was removed before
        return False
    forward = part.__dict__.get("forward")
    return bool(hooks_of(part)) or not isinstance(forward, (RestatedForward, WithoutBranch, type(None)))


def _detach(root: nn.Module, blocks: Sequence[Block]) -> None:
    for block in blocks:
        for detached in block.taken:
            detach(root, detached)


def _tail_differs(block: Block, dense: Observed, seen: Observed, found: Observed) -> str:
    """Whether a shortened module does something else behind the sum than it did, in the mode of these runs."""
    shortened = next((item for item in block.taken if isinstance(item, Shortened)), None)
    if shortened is None:
        return ""
    record = dense.records[block.sum]
    whole, short = (
        [
            (r.node, r.func)
            for call in calls.calls
            if call.path == shortened.path
            for r in calls.records[call.start : call.stop]
        ]
        for calls in (seen, found)
    )
    sums = [number for number, call in enumerate(whole) if call == (record.node, record.func)]
    expected = sum(r.node == record.node and r.func is record.func for r in dense.records[: block.sum + 1])
    start = next((c.start for c in dense.calls if c.path == shortened.path), 0)
    before = sum(r.node == record.node and r.func is record.func for r in dense.records[:start])
    place = expected - before - 1
    if place >= len(sums) or whole[sums[place] + 1 :] != short:
        return "what follows the sum in the same module is not the same in train mode"
    return ""


def _own_steps(records: Sequence[Record], key: int) -> tuple[list[Step], int] | None:
    """Calls of operators that a module makes itself, one after the other on one tensor; None where they are more."""
    steps = []
    for record in records:
        args, kwargs = record.template
        plain = all(not isinstance(leaf, Slot) for leaf in pytree.tree_leaves((args[1:], kwargs)))
        single = len(record.inputs) == len(record.outputs) == 1 and record.inputs[0].key == key
        if not (single and plain and not kwargs and torch.Tag.pointwise in record.func.tags):
            return None
        steps.append(Step(operator=spelled(record.func), arguments=tuple(args[1:])))
        key = record.outputs[0].key
    return steps, key


def _template(result: object, key: int) -> object:
    """A module's result with `Result` in the place of the only tensor in it, which has this key; else None."""
    leaves = pytree.tree_leaves(result)
    keys = [leaf for leaf in leaves if isinstance(leaf, _Key)]
    plain = all(isinstance(leaf, (_Key, int, float, str, bool, type(None))) for leaf in leaves)
    if not plain or keys != [_Key(key)]:
        return None
    return pytree.tree_map_only(_Key, lambda _: Result(), result)


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(axis.size for axis in value.axes)


def _holds(outer: ModuleCall, inner: ModuleCall) -> bool:
    return (
        outer is not inner
        and inner.path.startswith(f"{outer.path}." if outer.path else "")
        and (outer.start <= inner.start and inner.stop <= outer.stop)
    )


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}." if path else "")
