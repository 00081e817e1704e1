"""Runs of a module in which its operators are followed: on the example, in the other mode, on other inputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from passes.axes.expressions import Axis, Constant, Reason
from passes.errors import DoesNotRun, PassError
from passes.graph.left_behind import Plain, much_later
from passes.graph.module_copies import Replace, like, modules_of, owned_tensors
from passes.ops import Record, Value
from passes.ops import constant_indices as numbers
from passes.ops.call import COMPUTED
from passes.process.memoised import emptied, memoised
from passes.process.source_lines import innermost_line, said
from passes.process.torch_private import no_dispatch_modes, no_torch_function, without_onednn
from passes.stream.call_arguments import Arguments, replaced, tensors_of
from passes.stream.conditions import SizeConditions, Turned
from passes.stream.function_mode import Functions
from passes.stream.inference import composite_attention
from passes.stream.module_stream import ModuleInference, Watching, input_on_meta, on_meta_device
from passes.stream.results import Left, tensors_in
from passes.stream.stream_copies import State, scripted_modules, stream_copy

OF_INPUTS = "an input of the model keeps its shape"


@dataclass(frozen=True)
class Beside:
    """A run that counts for no cost: its calls, what it was given, the mode, and the condition that was turned.

    later: whether it was the second of two calls, with what the first had left in the module's attributes.
    """

    records: list[Record]
    arguments: Arguments
    training: bool
    turned: str = ""
    later: bool = False


@dataclass(frozen=True)
class Lifetimes:
    """When the tensors of a module's run came and went.

    inputs: what the caller gave. freed: (how many calls had been made, key of a tensor that nothing held any more).
    """

    inputs: tuple[Value, ...]
    freed: tuple[tuple[int, int], ...]


class ModuleInferred:
    """All that was found in the runs of one module (see `passes.stream.inference.Inferred`), and how it was run.

    records: the calls on the example, whose costs count. runs_beside: other runs, in the other mode or at another size,
    whose equalities hold as well. specialised: sentences that say what the runs were fixed to. counted: attributes that
    forward changes, with values that they may have later.
    """

    def __init__(self, run: ModuleRun, inputs: list[Value], outputs: list[Value]) -> None:
        mode = run.mode
        self.run, self.space, self.known = run, mode.space, mode.values
        self.vals: dict[str, object] = {}
        self.values: dict[str, object] = {}
        self.tensors, self.canonical = run.tensors, run.names
        self.outputs, self.real, self.records = outputs, mode.real, list(mode.records)
        self.lifetimes = Lifetimes(tuple(inputs), tuple(mode.freed))
        self.runs_beside: list[Beside] = []
        self.specialised: list[str] = []
        self.counted: dict[str, Plain] = {}
        self.turned = 0  # conditions that were answered otherwise, or said to be left

    @property
    def beside(self) -> list[Record]:
        """The calls of all runs beside that on the example."""
        return [record for run in self.runs_beside for record in run.records]

    def run_beside(self, arguments: Arguments, training: bool = False, turned: str = "", later: bool = False) -> str:
        """Run once more, in the other mode, on other inputs or otherwise at a line; why that cannot be, or "".

        later: as the second call, directly after the first.
        """
        mode = self.run.mode
        mode.records.clear()
        if not later:
            self.run.forget()
        try:
            self.run.run(arguments, training, turned=turned)
        except Exception as error:  # what a module raises in a mode, or at a size, that it does not take
            return said(error)
        self.runs_beside.append(Beside(list(mode.records), arguments, training, turned, later))
        return ""


AxesOf = Callable[[str, torch.Tensor], tuple[Axis, ...]]


class ModuleRun:
    """A copy of one module, ready to be run several times under `mode`: what each run finds is stated in one space.

    replace: by (name, tensor) what stands for a tensor of the module in the copy. axes_of: by the same its axes.
    innermost: a mode that sees calls before `mode` does. scripted: by path, what runs in place of scripted modules.
    owned: the module's own tensors by name, scripted modules' among them; of tied ones the first name is there.
    """

    def __init__(
        self, module: nn.Module, mode: ModuleInference, replace: Replace, axes_of: AxesOf,
        innermost: AbstractContextManager[Any] | None = None, scripted: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.mode = self._now = mode
        self._innermost = innermost or nullcontext()
        self.tensors: dict[str, tuple[Axis, ...]] = {}
        self.originals: dict[str, torch.Tensor] = {}  # the module's own tensors by name, tied ones once
        self._held: list[tuple[str, torch.Tensor, torch.Tensor, Value]] = []  # the name, its copy, what both stand for

        def stand_in(name: str, tensor: torch.Tensor) -> torch.Tensor:
            made = replace(name, tensor)
            self.tensors[name] = axes_of(name, tensor)
            value = Value(name, self.tensors[name], frozenset([name]), numbers=numbers.stated(tensor))
            mode.hold(made, value)
            mode.names[id(tensor)] = made
            self.originals[name] = tensor
            self._held.append((name, made, made.data, value))
            return made

        self._has_run = False
        self._instead, found = scripted, scripted_modules(module)
        self._modules, copies = stream_copy(module, found, stand_in, self._opaque, mode.stack)
        # Those of scripted modules are not replaced.
        self.owned = owned_tensors(module) if found else list(self.originals.items())
        self.copy = self._modules[""]
        if any([part.training for part in self._modules.values()]):
            self.copy.eval()
        self.names = copies.names
        self._state = State(self._modules)
        self._memoised = memoised(set(map(type, modules_of(module).values())))
        for name, tensor in _tensors_of(found):
            reason = Reason("it belongs to a scripted module, whose code cannot be changed", name)
            self.tensors[name] = tuple(Constant(int(s), reason) for s in tensor.shape)
            self.names[name] = name
        placed = (tensor.device for tensor in self.originals.values() if not tensor.is_meta)
        mode.device = next(placed, torch.device("cpu"))

    def run(
        self, arguments: Arguments, training: bool = False, functions: Functions | None = None,
        gradients: bool = False, turned: str = "",
    ) -> tuple[list[Value], list[Value], Any]:  # fmt: skip
        """Run once; the values of inputs and outputs, and what the module returned, with what it left in its arguments.

        gradients: in that mode.

        turned: the line at which a condition gets the other answer.
        """
        mode = self.mode
        mode.begin()
        if self._has_run:  # else all is as it was made
            for _, made, data, value in self._held:
                made.data = data
                mode.restate(made, value)
        self._has_run = True
        given: dict[int, torch.Tensor] = {}
        inputs: list[Value] = []
        for tensor in tensors_of(arguments):
            if id(tensor) not in given:
                given[id(tensor)] = made = tensor.detach().clone() if mode.real else input_on_meta(tensor)
                reason = Reason(OF_INPUTS, "input")
                axes = tuple(Constant(int(s), reason) for s in tensor.shape)
                inputs.append(Value("input", axes, from_inputs=True))
                mode.hold(made, inputs[-1])
        self._in_mode(training)
        called_with = replaced(arguments, given)
        left = Left(called_with)
        result = left.beside(self._called(mode, called_with, training, functions, turned, gradients))
        mode.settle_sought()
        outputs = []
        reason = Reason("an output of the model keeps its shape", "output")
        for tensor in tensors_in(result):
            value = mode.value(tensor)
            outputs.append(value)
            for axis in value.axes:
                mode.space.freeze(axis, reason)
            for axis in value.watched:
                mode.space.freeze(axis, Reason(COMPUTED, "output"))
        return inputs, outputs, result

    def again(
        self, mode: Watching, arguments: Arguments, training: bool = False, functions: Functions | None = None,
        cut: Mapping[str, torch.Tensor] = MappingProxyType({}),
        prepare: Callable[[nn.Module], None] = lambda copied: None, turned: str = "", gradients: bool = False,
        conditions: SizeConditions | None = None, later: bool = False,
    ) -> None:  # fmt: skip
        """Run once under another mode.

        cut: by name what tensors of the module hold this time. prepare: is given the copy first. turned: as in `run`.
        gradients: in the mode in which these are recorded. conditions: lists those on sizes, where none is turned.
        later: as the second of two calls.
        """
        modes = (Watching(mode.real), mode) if later else (mode,)
        for each in modes:
            each.stack, each.device, each.names = self.mode.stack, self.mode.device, self.mode.names
        self._has_run = True
        self._state.restore()
        for name, made, data, _ in self._held:
            now = cut.get(name, data)
            if not made.is_floating_point():
                stated = numbers.stated(now if name in cut else self.originals[name])
                if stated is not None:
                    for each in modes:
                        each.attach(made, Value(name, (), frozenset([name]), numbers=stated))
                    now = now if mode.real else on_meta_device(now)
            made.data = now
        self._in_mode(training)
        prepare(self.copy)
        for each in modes:
            given = {id(t): t.detach().clone() if mode.real else input_on_meta(t) for t in tensors_of(arguments)}
            for tensor in given.values():
                each.attach(tensor, Value("input", ()))
            own = (functions, turned, gradients, conditions) if each is mode else (None, turned, gradients)
            self._called(each, replaced(arguments, given), training, *own)

    def forget(self) -> None:
        """Undo what runs have left in attributes: a cache, a counter, a size of the first call."""
        self._state.restore()

    def changed(self) -> dict[str, Plain]:
        """The numbers, flags and texts that runs have changed in attributes, as they are now, by qualified names."""
        return self._state.changed()

    def kept(self) -> list[torch.Tensor]:
        """The tensors that runs have put into attributes."""
        return self._state.kept()

    def release(self) -> None:
        """Give the memory of the copy back; it cannot be run any more."""
        self.mode.stack.release(self._modules.values())

    def _in_mode(self, training: bool) -> None:
        if training or self.copy.training:
            self.copy.train(training)

    def _called(
        self, mode: ModuleInference, arguments: Arguments, training: bool, functions: Functions | None, turned: str,
        gradients: bool = False, conditions: SizeConditions | None = None,
    ) -> object:  # fmt: skip
        self._now = mode
        mode.stack.emit = None if mode.real else mode.emit
        mode.stack.changed.clear()
        mode.training = training
        args, kwargs = arguments
        functions = functions or Functions(mode)
        functions.conditions = conditions or (Turned(turned) if turned else None)
        by_len = functions.conditions.by_len if functions.conditions else nullcontext()
        forgetful = emptied(self._memoised)
        with forgetful, recording(mode, functions), torch.set_grad_enabled(gradients), by_len, self._innermost:
            return self.copy(*args, **kwargs)

    def _opaque(self, path: str, original: nn.Module, args: tuple, kwargs: dict[str, object]) -> object:
        result, outputs, macs = run_scripted(self._now, self._instead.get(path, original), args, kwargs)
        self._now.opaque(path, list(tensors_of((args, kwargs))), outputs, macs)
        return result


def run_scripted(
    mode: ModuleInference, original: nn.Module, args: tuple, kwargs: dict[str, object]
) -> tuple[Any, list[torch.Tensor], int]:
    """Run a scripted module where no mode sees it: on zeros for its shapes, or on values.

    Returns its result, the tensors in it, and its multiply-accumulates.
    """
    given = list(tensors_of((args, kwargs)))
    with no_dispatch_modes(), no_torch_function():
        real = {id(t): t if mode.real else torch.zeros(t.shape, dtype=t.dtype, device=mode.device) for t in given}
        original = copy.deepcopy(original).eval()  # what it draws in train mode nobody can hold back
        if any(t.dtype == torch.float64 for t in given):
            original = original.double()
        counter = FlopCounterMode(display=False)
        with counter:
            result = original(*replaced(args, real), **replaced(kwargs, real))
        made = {id(t): t if mode.real else on_meta_device(t) for t in tensors_of(result)}
        result = replaced(result, made)
    return result, list(tensors_of(result)), counter.get_total_flops() // 2


def _tensors_of(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in modules.items():
        for name, tensor in owned_tensors(module):
            yield f"{path}.{name}", tensor


def turning(line: str) -> AbstractContextManager[Any]:
    """Inside, a condition at `line`, if one is named, gets the other answer."""
    return Turned(line) if line else nullcontext()


@contextmanager
def recording(mode: ModuleInference, functions: Functions | None = None) -> Iterator[None]:
    """Inside, calls go to `mode`; random numbers, gradients and flags are as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(composite_attention())
        if mode.real:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(without_onednn())
        stack.enter_context(functions or Functions(mode))
        stack.enter_context(mode)
        yield


def analysing_run(module: nn.Module, real: bool) -> ModuleRun:
    """A run in which every dimension of every tensor of `module` is a variable of its own."""
    mode = ModuleInference(real)

    def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not real:
            return like(tensor, on_meta_device(tensor))
        return like(tensor, tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone())

    return ModuleRun(module, mode, replace, lambda _, t: tuple(map(mode.space.variable, t.shape)))


@torch.inference_mode(False)
def infer_module(module: nn.Module, arguments: Arguments) -> ModuleInferred:
    """Infer the axes of every tensor of `module` by running it; it is not changed.

    Runs on the meta device first, and on the values of `arguments` where the program asks for values.

    Raises PassError where the module does not run on the arguments.
    """
    run, found, problem = None, None, ""
    for real in (False, True):
        run = analysing_run(module, real)
        try:
            found = run.run(arguments)
            break
        except Exception as error:  # the user's own code may raise anything; the second run shows what is wrong
            _own_tensors_alone(module, run.mode)
            problem = problem or said(error)
            if higher := re.search(r"HigherOrderOperator (\w+)", str(error)):
                raise PassError(
                    f"{type(module).__name__} calls torch's higher-order operator {higher[1]} "
                    f"({innermost_line(error)}), whose functions no analysis here follows; write it in plain operators"
                ) from error
            if real:
                raise DoesNotRun(
                    f"{type(module).__name__} does not run on the example inputs: {said(error)}; "
                    "pass inputs that it takes: a tensor, a tuple of positional arguments, or a dict of keywords"
                ) from error
    assert run is not None and found is not None, "one of the two runs returned"
    _own_tensors_alone(module, run.mode)
    inputs, outputs, _ = found
    inferred = ModuleInferred(run, inputs, outputs)
    inferred.counted = much_later(run.changed())
    if run.mode.real:
        inferred.specialised.append(f"its program asks for values ({problem}); it was followed on those of the example")
    elif run.mode.asked:
        lines = ", ".join(list(run.mode.asked)[:3])
        inferred.specialised.append(f"its program asks for values of whole-number inputs ({lines}), as in the example")
    return inferred


def _own_tensors_alone(module: nn.Module, mode: ModuleInference) -> None:
    """PassError where a copy of `module` computes with tensors of `module` itself."""
    for name, line in mode.reached.items():
        raise PassError(
            f"{type(module).__name__}: a copy of it still computes with {name} of the module that was given ({line}): "
            "a lambda, a hook, a weak reference or a global variable holds it, and would in the cut module too, whose "
            "training would then change yours. Reach it through self, or through the module that a hook is given"
        )
