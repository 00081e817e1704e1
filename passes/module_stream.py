"""The operators of a module as it runs: its own Python under a dispatch mode, with axes attached to its tensors.

Parameters and buffers are replaced by ones on the meta device in a copy of the module, so nothing of it is computed or
changed. What the program makes of sizes alone (positions, masks, grids) is computed, so that its numbers are known and
whatever a program keeps of it is real. Where the program asks for values of its inputs, it runs on the example's.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from passes import numbers
from passes.axes import Axis, Constant, Reason
from passes.errors import PassError
from passes.infer import INDEXING, Inference, composite_attention, tensors_in
from passes.meta import on_meta, run_on_meta
from passes.module_copies import CallStack, scripted_modules, stream_copy
from passes.module_inputs import Arguments, replaced, tensors_of
from passes.ops import Record, Slot, Value, spelled
from passes.references import REFERENCES
from passes.skeleton import Replace, like, owned_tensors
from passes.structure import Lifetimes

aten = torch.ops.aten
_OWN_FILES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
FEW = 64  # elements of a constant whose values are looked at
_VALUES = frozenset({aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default})


class ValuesNeeded(Exception):
    """The program asks for numbers that the meta device does not hold."""


class ModuleInference(Inference):
    """The dispatch mode for a module. `real`: everything is computed, on the example's values.

    Tensors on the meta device are those of the module and what is computed of them; others are the program's constants.
    """

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real = self.on_values = real
        self.training = False  # dropout keeps everything then: what it drops is drawn anew for any width
        self.device = torch.device("cpu")
        self.names: dict[int, torch.Tensor] = {}  # the caller's tensor, by its id -> what stands for it
        self.stack = CallStack()
        self.stack.emit = None if real else self.emit
        self.function = ""
        self.freed: list[tuple[int, int]] = []  # (records so far, key of a tensor that nothing holds any more)
        self.asked: dict[str, None] = {}  # lines that ask for values of inputs
        self.keep: list[torch.Tensor] = []  # tensors of the module and of its inputs
        self._attentions = 0
        self._constants: dict[int, tuple[Any, Value]] = {}
        self._on_meta: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._written: set[int] = set()  # storages of constants into which data was written

    # -- where a call belongs -----------------------------------------------------------------------------------------

    def label(self) -> str:
        path = self.stack.paths[-1] or "forward"
        return f"{path}:{self.function}" if self.function else path

    def source(self) -> str:
        return users_line(sys._getframe(1))

    # -- what is known of a tensor ------------------------------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> Value:
        if not self._is_constant(tensor):
            return super().value(tensor)
        known = self._constants.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        twin = self.names.get(id(tensor))
        if twin is not None:
            return super().value(twin)
        reason = self.reason("", "a constant of the program")
        value = Value(self.label(), tuple(Constant(int(s), reason) for s in tensor.shape))
        value.numbers = numbers.stated(tensor)
        self.attach(tensor, value)
        return value

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        if self._is_constant(tensor):
            self.values.append(value)
            self._constants[id(tensor)] = weakref.ref(tensor), value
        else:
            super().attach(tensor, value)
        freed, key, records = self.freed, value.key, self.records
        weakref.finalize(tensor, lambda: freed.append((len(records), key))).atexit = False

    def _is_constant(self, tensor: torch.Tensor) -> bool:
        return self.real or not tensor.is_meta

    # -- running a call -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.training and func.overloadpacket in _DROPS:
            return _DROPS[func.overloadpacket](self.call, *args)
        return self.call(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        if self.real:
            return func(*args, **kwargs)
        operands = tensors_in(*args, *kwargs.values())
        if not any(self.holds_data(t) for t in operands):  # made of sizes, constants and whole numbers of the inputs
            if func in _VALUES and any(self.value(t).from_inputs for t in operands):
                self.asked.setdefault(self.source(), None)
            return func(*args, **kwargs)
        if func in _VALUES:
            raise ValuesNeeded(f"{spelled(func)} asks for values")
        if func in INDEXING:
            args = (args[0], [_as_places(index) for index in args[1]], *args[2:])
            operands = tensors_in(*args, *kwargs.values())
        meta = {id(t): self._meta_of(t) for t in operands if not t.is_meta}
        if meta:
            written = [t for t in _written_operands(func, args, kwargs) if id(t) in meta]
            self._written.update(t.untyped_storage()._cdata for t in written)
            args, kwargs = (_swapped(item, meta) for item in (args, kwargs))
        result = run_on_meta(func, args, on_meta(func, kwargs))
        return _swapped(result, {id(m): t for t, m in self._on_meta.values()}) if meta else result

    def holds_data(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or id(tensor) in self.names or tensor.untyped_storage()._cdata in self._written

    def _meta_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What stands on the meta device for a constant, with its axes."""
        own = self.names.get(id(tensor))
        if own is not None:
            return own
        known = self._on_meta.get(id(tensor))
        if known is None or known[0] is not tensor:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            known = self._on_meta[id(tensor)] = tensor, made
        return known[1]

    def all_on_meta(self, func: Any, args: tuple, kwargs: dict[str, Any], error: Exception) -> Any:
        """Call a function again that wants its tensors on one device; its constants go to where the data are."""
        given = [tensor for tensor in tensors_of((args, kwargs)) if not tensor.is_meta]
        if not given:
            raise error
        meta = {}
        for tensor in given:
            with _disable_current_modes():  # what only the analysis makes is no call of the program
                meta[id(tensor)] = made = self._meta_of(tensor)
            super().attach(made, self.value(tensor))
        return func(*_swapped(args, meta), **_swapped(kwargs, meta))

    def _record(self, func, args, kwargs, operands, before, outputs) -> None:
        super()._record(func, args, kwargs, operands, before, outputs)
        record = self.records[-1]
        record.constants = self.constants_among(operands)
        if record.mixed and func.overloadpacket not in REFERENCES:
            reason = self.reason(spelled(func), "it mixes units, and no reference says what it gives without some")
            for axis in record.mixed:
                self.space.freeze(axis, reason)

    def constants_among(self, operands: Sequence[torch.Tensor]) -> dict[int, list[Any]]:
        """The values of small constants that meet data in a call, by their number among its operands."""
        if self.real or all(tensor.is_meta for tensor in operands):
            return {}
        data = [self.holds_data(tensor) for tensor in operands]
        if not any(data):
            return {}
        return {
            number: tensor.flatten().tolist()
            for number, (tensor, holds) in enumerate(zip(operands, data, strict=True))
            if not holds and tensor.numel() <= FEW
        }

    def opaque(self, label: str, inputs: Sequence[torch.Tensor], outputs: Any, macs: int, why: str) -> None:
        """A part that runs where no mode sees it: what enters stays, what leaves is made of constants."""
        reason = self.reason(label, why)
        for tensor in inputs:
            for axis in self.value(tensor).axes:
                self.space.freeze(axis, reason)
        made = [Value(label, tuple(Constant(int(s), reason) for s in t.shape), from_inputs=True) for t in outputs]
        for tensor, value in zip(outputs, made, strict=True):
            self.attach(tensor, value)
        operator = aten.alias.default
        operands = [self.value(t) for t in inputs]
        slots = tuple(Slot(number, tensor.dtype) for number, tensor in enumerate(inputs))
        record = Record(self.label(), operator, operands, made, template=(slots, {}))
        record.macs = [(Constant(macs),)] if macs else []
        self.records.append(record)


def _keep(call: Any, tensor: torch.Tensor, *args: Any) -> Any:
    """Dropout that drops nothing, and its mask."""
    return call(aten.clone.default, (tensor,), {}), call(aten.ones_like.default, (tensor,), {"dtype": torch.bool})


def _keep_flags(call: Any, tensor: torch.Tensor, p: Any = 0.5, *args: Any) -> Any:
    return call(aten.fill_.Scalar, (tensor, p if isinstance(p, float) else 1.0), {})


_DROPS: dict[Any, Any] = {aten.native_dropout: _keep, aten.bernoulli_: _keep_flags}


def _written_operands(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for formal, actual in zip(func._schema.arguments, args, strict=False):
        if formal.alias_info is not None and formal.alias_info.is_write:
            yield from tensors_in(actual)
    for formal in func._schema.arguments:
        if formal.name in kwargs and formal.alias_info is not None and formal.alias_info.is_write:
            yield from tensors_in(kwargs[formal.name])


def _swapped(item: Any, tensors: dict[int, torch.Tensor]) -> Any:
    if isinstance(item, torch.Tensor):
        return tensors.get(id(item), item)
    if isinstance(item, (tuple, list)):
        return type(item)(_swapped(part, tensors) for part in item)
    if isinstance(item, dict):
        return {name: _swapped(part, tensors) for name, part in item.items()}
    return item


def users_line(frame: Any) -> str:
    """``file.py:line`` of the innermost frame outside torch and this package."""
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FILES):
        frame = frame.f_back
    return "" if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def innermost_line(error: Exception) -> str:
    """``file.py:line`` of the user's code that an error passed last."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith(_OWN_FILES):
            place = f"{os.path.basename(path)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class Functions(TorchFunctionMode):
    """Calls that hide from a dispatch mode what it needs to know: devices, lists used as indices, fused attention."""

    def __init__(self, mode: ModuleInference) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, func, types, args=(), kwargs=None):
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self.mode, func, args, kwargs or {})
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if self.mode.real or "device" not in str(error):
                raise
            return self.mode.all_on_meta(func, args, kwargs or {}, error)


def _device(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    return mode.device if args[0].is_meta and not mode.real else func(*args)


def _on_kind(kind: str) -> Callable[..., Any]:
    def asked(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        with torch._C.DisableTorchFunction():
            return mode.device.type == kind if args[0].is_meta and not mode.real else func(*args)

    return asked


def _item(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``x[..., [2, 0, 1]]``: as a tensor the list keeps its numbers."""
    key = args[1]
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, list) for part in parts):
        made = tuple(_as_index(part) if isinstance(part, list) else part for part in parts)
        args = (args[0], made if isinstance(key, tuple) else made[0], *args[2:])
    return func(*args, **kwargs)


def _new_tensor(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``x.new_tensor(number)``: a constant of the program, of the type of `x`."""
    if mode.real or not args[0].is_meta or isinstance(args[1], torch.Tensor):
        return func(*args, **kwargs)
    return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": mode.device, **kwargs})


def _as_index(part: list[Any]) -> Any:
    flat = all(isinstance(number, (bool, int)) for number in part)
    if not flat or not part:
        return part
    with _disable_current_modes():  # the program makes no tensor of it
        return torch.tensor(part, device="cpu")


def _attention(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Attention by the products that it is made of: a fused kernel would hide them."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    scale, grouped = given.pop("scale", None), given.pop("enable_gqa", False)
    mask = given.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:  # torch does so before it chooses how to compute
        given["attn_mask"] = torch.zeros_like(mask, dtype=given["query"].dtype).masked_fill(~mask, -math.inf)
    mode._attentions += 1
    before, mode.function = mode.function, f"scaled_dot_product_attention{mode._attentions}"
    try:
        return aten._scaled_dot_product_attention_math(
            given["query"], given["key"], given["value"], given.get("attn_mask"), given.get("dropout_p", 0.0),
            given.get("is_causal", False), scale=scale, enable_gqa=grouped,
        )[0]  # fmt: skip
    finally:
        mode.function = before


def _getter(name: str) -> Any:
    return getattr(torch.Tensor, name).__get__


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _getter("device"): _device,
    _getter("is_meta"): lambda mode, func, args, kwargs: False if not mode.real else func(*args),
    _getter("is_cuda"): _on_kind("cuda"),
    _getter("is_cpu"): _on_kind("cpu"),
    torch.Tensor.__getitem__: _item,
    torch.Tensor.new_tensor: _new_tensor,
    torch.nn.functional.scaled_dot_product_attention: _attention,
}


@dataclass(frozen=True)
class Beside:
    """A run that counts for no cost: its calls, what it was given, and the mode."""

    records: list[Record]
    arguments: Arguments
    training: bool


class ModuleInferred:
    """All that was found in the runs of one module (see `passes.infer.Inferred`), and how it was run.

    records: the calls on the example, whose costs count. runs_beside: other runs, in the other mode or at another size,
    whose equalities hold as well. specialised: sentences that say what the runs were fixed to.
    """

    def __init__(self, run: ModuleRun, inputs: list[Value], outputs: list[Value]) -> None:
        mode = run.mode
        self.run, self.space, self.known = run, mode.space, mode.values
        self.vals: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.tensors, self.canonical = run.tensors, run.names
        self.outputs, self.real, self.records = outputs, mode.real, list(mode.records)
        self.lifetimes = Lifetimes(tuple(inputs), tuple(mode.freed))
        self.runs_beside: list[Beside] = []
        self.specialised: list[str] = []

    @property
    def beside(self) -> list[Record]:
        """The calls of all runs beside that on the example."""
        return [record for run in self.runs_beside for record in run.records]

    def run_beside(self, arguments: Arguments, training: bool = False) -> str:
        """Run once more, in the other mode or on other inputs; why that cannot be, or ""."""
        mode = self.run.mode
        mode.records.clear()
        self.run.forget()
        try:
            self.run.run(arguments, training)
        except Exception as error:  # what a module raises in a mode, or at a size, that it does not take
            return said(error)
        self.runs_beside.append(Beside(list(mode.records), arguments, training))
        return ""


AxesOf = Callable[[str, torch.Tensor], tuple[Axis, ...]]


class ModuleRun:
    """A copy of one module, ready to be run several times under `mode`: what each run finds is stated in one space.

    replace: by (name, tensor) what stands for a tensor of the module in the copy. axes_of: by the same its axes.
    """

    def __init__(self, module: nn.Module, mode: ModuleInference, replace: Replace, axes_of: AxesOf) -> None:
        self.mode = mode
        self.tensors: dict[str, tuple[Axis, ...]] = {}

        def stand_in(name: str, tensor: torch.Tensor) -> torch.Tensor:
            made = replace(name, tensor)
            self.tensors[name] = axes_of(name, tensor)
            mode.attach(made, Value(name, self.tensors[name], frozenset([name]), numbers=numbers.stated(tensor)))
            mode.keep.append(made)
            mode.names[id(tensor)] = made
            return made

        self.copy, copies = stream_copy(module, stand_in, self._opaque, mode.stack)
        self.names = copies.names
        self._state = [(m, dict(m.__dict__), dict(m._buffers)) for m in self.copy.modules()]
        for name, tensor in _scripted_tensors(module).items():
            reason = Reason("it belongs to a scripted module, whose code cannot be changed", name)
            self.tensors[name] = tuple(Constant(int(s), reason) for s in tensor.shape)
            self.names[name] = name
        first = next((t for _, t in owned_tensors(module)), None)
        mode.device = first.device if first is not None else torch.device("cpu")

    def run(
        self, arguments: Arguments, training: bool = False, functions: Functions | None = None
    ) -> tuple[list[Value], list[Value], Any]:
        """Run once; the values of inputs and outputs, and what the module returned."""
        mode = self.mode
        given: dict[int, torch.Tensor] = {}
        inputs: list[Value] = []
        for tensor in tensors_of(arguments):
            if id(tensor) not in given:
                given[id(tensor)] = made = tensor.detach().clone() if mode.real else input_on_meta(tensor)
                reason = Reason("an input of the model keeps its shape", "input")
                axes = tuple(Constant(int(s), reason) for s in tensor.shape)
                inputs.append(Value("input", axes, from_inputs=True))
                mode.attach(made, inputs[-1])
                mode.keep.append(made)
        args, kwargs = replaced(arguments, given)
        self.copy.train(training)
        mode.training = training
        with recording(mode, functions):
            result = self.copy(*args, **kwargs)
        outputs = []
        reason = Reason("an output of the model keeps its shape", "output")
        for tensor in tensors_of(result, caches=False):
            value = mode.value(tensor)
            outputs.append(value)
            for axis in (*value.axes, *value.watched):
                mode.space.freeze(axis, reason)
        return inputs, outputs, result

    def forget(self) -> None:
        """Undo what runs have left in attributes: a cache, a counter, a size that was met first."""
        for module, attributes, buffers in self._state:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)

    def _opaque(self, path: str, original: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        result, outputs, macs = run_scripted(self.mode, original, args, kwargs)
        given = list(tensors_of((args, kwargs)))
        self.mode.opaque(path, given, outputs, macs, "a scripted module, whose code cannot be read")
        return result


def run_scripted(
    mode: ModuleInference, original: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, list[torch.Tensor], int]:
    """Run a scripted module where no mode sees it: on zeros for its shapes, or on values.

    Returns its result, the tensors in it, and its multiply-accumulates.
    """
    given = list(tensors_of((args, kwargs)))
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        real = {id(t): t if mode.real else torch.zeros(t.shape, dtype=t.dtype, device=mode.device) for t in given}
        if any(t.dtype == torch.float64 for t in given):
            original = copy.deepcopy(original).double()
        counter = FlopCounterMode(display=False)
        with counter:
            result = original(*replaced(args, real), **replaced(kwargs, real))
        made = {id(t): t if mode.real else on_meta_device(t) for t in tensors_of(result)}
        result = replaced(result, made)
    return result, list(tensors_of(result)), counter.get_total_flops() // 2


def _scripted_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{name}": tensor
        for path, scripted in scripted_modules(module).items()
        for name, tensor in owned_tensors(scripted)
    }


def input_on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """What stands for an input: whole numbers and flags keep their values (masks, places, lengths), others none."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta:
        return on_meta_device(tensor)
    return tensor.detach().clone()


def _as_places(index: Any) -> Any:
    """Flags with values, as an index, become the places where they are set: how many follows from the values."""
    if not isinstance(index, torch.Tensor) or index.is_meta or index.dtype != torch.bool or index.dim() != 1:
        return index
    return index.nonzero().flatten()


def on_meta_device(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextmanager
def recording(mode: ModuleInference, functions: Functions | None = None) -> Iterator[None]:
    """Inside, calls go to `mode`; random numbers, gradients and flags are as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(composite_attention())
        if mode.real:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
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

    return ModuleRun(module, mode, replace, lambda _, t: tuple(mode.space.variable(int(s)) for s in t.shape))


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
        except Exception as error:  # the user's own code may raise anything; the second run tells what is wrong
            problem = problem or said(error)
            if real:
                raise PassError(
                    f"{type(module).__name__} does not run on the example inputs: {said(error)}; "
                    "pass inputs that it takes: a tensor, a tuple of positional arguments, or a dict of keywords"
                ) from error
    assert run is not None and found is not None, "one of the two runs returned"
    inputs, outputs, _ = found
    inferred = ModuleInferred(run, inputs, outputs)
    if run.mode.real:
        inferred.specialised.append(f"its program asks for values ({problem}); it was followed on those of the example")
    elif run.mode.asked:
        lines = ", ".join(list(run.mode.asked)[:3])
        inferred.specialised.append(f"its program asks for values of whole-number inputs ({lines}), as in the example")
    return inferred


def said(error: Exception) -> str:
    """One line: what was raised, and the innermost line of the user's code on the way."""
    text, place = str(error).strip().splitlines(), innermost_line(error)
    return f"{type(error).__name__}: {text[0] if text else ''}" + (f" ({place})" if place else "")
