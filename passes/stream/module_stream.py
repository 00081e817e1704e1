"""The operators of a module as it runs: its own Python under a dispatch mode, with axes attached to its tensors.

Parameters and buffers are replaced by ones on the meta device in a copy of the module, so nothing of it is computed or
changed. What the program makes of sizes alone (positions, masks, grids) is computed, so that its numbers are known and
whatever a program keeps of it is real. Where the program asks for values of its inputs, it runs on the example's.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch

from passes.axes.expressions import Constant, leaves
from passes.ops import Record, Slot, Value
from passes.ops import constant_indices as numbers
from passes.ops.facts import Facts, facts_of
from passes.ops.meta_shapes import empty_on_meta, on_meta
from passes.ops.storage import written_arguments
from passes.process.source_lines import users_line
from passes.process.torch_private import OpOverload, no_dispatch_modes, storage_id
from passes.stream.call_arguments import tensors_of
from passes.stream.inference import ATTRIBUTE, Inference, tensors_in
from passes.stream.stream_copies import CallStack

aten = torch.ops.aten
FEW = 64  # elements of a constant whose values are looked at
_is_meta = attrgetter("is_meta")


class ValuesNeeded(Exception):
    """The program asks for numbers that the meta device does not hold."""


class _Lifetime:
    """Held by a tensor; records when that is freed."""

    __slots__ = ("before", "freed", "key", "records")

    def __init__(self, mode: ModuleInference, key: int, tensor: torch.Tensor) -> None:
        self.freed, self.records, self.key = mode.freed, mode.records, key
        self.before = getattr(tensor, "_fxprune_lifetime", None)

    def __del__(self) -> None:
        if hasattr(self, "freed"):  # torch.compile makes objects before it knows whether it can
            self.freed.append((len(self.records), self.key))


class ModuleInference(Inference):
    """The dispatch mode for a module. `real`: everything is computed, on the example's values.

    Tensors on the meta device are those of the module and what is computed of them; others are the program's constants.
    """

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real = real
        self.training = False  # dropout keeps everything then: what it drops is drawn anew for any width
        self.device = torch.device("cpu")
        self.names: dict[int, torch.Tensor] = {}  # the caller's tensor, by its id -> what stands for it
        self.stack = CallStack()
        self.function = ""
        self.freed: list[tuple[int, int]] = []  # (records so far, key of a tensor that nothing holds any more)
        self.asked: dict[str, None] = {}  # lines that ask for values (on meta: of inputs)
        self.reached: dict[str, str] = {}  # tensors of the caller's module that its copy uses, and the line that does
        self.keep: list[torch.Tensor] = []  # tensors of the module and of its inputs
        self.attentions = 0
        self._constants: dict[int, tuple[Callable[[], object], Value]] = {}
        self._on_meta: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._written: set[int] = set()  # storages of constants into which data was written

    def begin(self) -> None:
        """A run of the module begins."""

    # -- where a call belongs -----------------------------------------------------------------------------------------

    def label(self) -> str:
        path = self.stack.paths[-1] or "forward"
        return f"{path}:{self.function}" if self.function else path

    def source(self) -> str:
        return users_line(sys._getframe(1))

    # -- what is known of a tensor ------------------------------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> Value:
        if not self.real:
            found = getattr(tensor, ATTRIBUTE, None)  # which constants do not have
            if found is not None:
                return found
            if tensor.is_meta:
                return super().value(tensor)
        known = self._constants.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        stands_for = self.names.get(id(tensor))
        if stands_for is not None:
            found = self.value(stands_for)
            self.reached.setdefault(found.label, self.source())
            return found
        reason = self.reason("", "a constant of the program")
        value = Value(self.label(), tuple(Constant(int(s), reason) for s in tensor.shape))
        value.numbers = numbers.stated(tensor)
        self.attach(tensor, value)
        return value

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        self.values.append(value)
        if self._is_constant(tensor):
            self._constants[id(tensor)] = weakref.ref(tensor), value
            freed, key, records = self.freed, value.key, self.records
            weakref.finalize(tensor, lambda: freed.append((len(records), key))).atexit = False
        else:
            setattr(tensor, ATTRIBUTE, value)
            tensor._fxprune_lifetime = _Lifetime(self, value.key, tensor)  # type: ignore[attr-defined]

    def hold(self, tensor: torch.Tensor, value: Value) -> None:
        """`attach` for a tensor that is kept as long as the runs are."""
        self.keep.append(tensor)
        if self._is_constant(tensor):
            self.attach(tensor, value)
        else:
            setattr(tensor, ATTRIBUTE, value)
            self.values.append(value)

    def restate(self, tensor: torch.Tensor, value: Value) -> None:
        """State again what a tensor that is kept was held as: runs under other modes say otherwise."""
        if not self._is_constant(tensor):
            setattr(tensor, ATTRIBUTE, value)

    def _is_constant(self, tensor: torch.Tensor) -> bool:
        return self.real or not tensor.is_meta

    # -- running a call -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.training and func.overloadpacket in _DROPS:
            return _DROPS[func.overloadpacket](self.call, *args)
        return self.call(func, args, kwargs or {})

    def run(self, facts: Facts, args, kwargs, operands):
        func = facts.func
        if self.real:
            if facts.asks_values:
                self.asked.setdefault(self.source(), None)
            return func(*args, **kwargs)
        takes_more_than_shapes = facts.asks_values or facts.is_indexing
        if operands and not kwargs and not takes_more_than_shapes and all(map(_is_meta, operands)):
            return facts.run_on_meta(args, kwargs)
        if not any(self.holds_data(t) for t in operands):  # made of sizes, constants and whole numbers of the inputs
            if facts.asks_values and any(self.value(t).from_inputs for t in operands):
                self.asked.setdefault(self.source(), None)
            return func(*args, **kwargs) if operands else facts.run_on_meta(args, kwargs)
        if facts.asks_values:
            raise ValuesNeeded(f"{facts.spelled} asks for values")
        if facts.is_indexing:
            args = (args[0], [_as_places(index) for index in args[1]], *args[2:])
            operands = tensors_in(*args, *kwargs.values())
        meta = {id(t): self._meta_of(t) for t in operands if not t.is_meta}
        if meta:
            written = [t for t in tensors_in(*written_arguments(func, args, kwargs)) if id(t) in meta]
            self._written.update(storage_id(t) for t in written)
            args, kwargs = (_swapped(item, meta) for item in (args, kwargs))
        result = facts.run_on_meta(args, on_meta(func, kwargs))
        return _swapped(result, {id(m): t for t, m in self._on_meta.values()}) if meta else result

    def holds_data(self, tensor: torch.Tensor) -> bool:
        """Whether parameters or inputs enter `tensor`; what a program makes of sizes and numbers alone is constant."""
        if self.real:
            return is_data(self.value(tensor))
        return tensor.is_meta or id(tensor) in self.names or storage_id(tensor) in self._written

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

    def all_on_meta(self, func: OpOverload, args: tuple, kwargs: dict[str, object], error: Exception) -> object:
        """Call a function again that needs all tensors on one device, its constants moved to that of the data."""
        given = [tensor for tensor in tensors_of((args, kwargs)) if not tensor.is_meta]
        if not given:
            raise error
        meta = {}
        for tensor in given:
            with no_dispatch_modes():  # what only the analysis makes is no call of the program
                meta[id(tensor)] = made = self._meta_of(tensor)
            super().attach(made, self.value(tensor))
        return func(*_swapped(args, meta), **_swapped(kwargs, meta))

    def _record(self, facts: Facts, args, kwargs, operands, before, outputs, template) -> None:
        super()._record(facts, args, kwargs, operands, before, outputs, template)
        record = self.records[-1]
        if self._constants:
            record.constants = self.constants_among(operands)
        if record.mixed and facts.traits.reference is None:
            reason = self.reason(facts.spelled, "it mixes units, and no reference says what it gives without some")
            for axis in record.mixed:
                self.space.freeze(axis, reason)

    def constants_among(self, operands: Sequence[torch.Tensor]) -> dict[int, list[object]]:
        """The values of small constants that are combined with data in a call, by their number among its operands."""
        if not self._constants or all(map(_is_meta, operands)):
            return {}
        data = [self.holds_data(tensor) for tensor in operands]
        if not any(data):
            return {}
        return {
            number: tensor.flatten().tolist()
            for number, (tensor, holds) in enumerate(zip(operands, data, strict=True))
            if not holds and tensor.numel() <= FEW
        }

    def opaque(self, label: str, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], macs: int) -> None:
        """A scripted part that runs where no mode sees it: what enters stays, what leaves is made of constants."""
        reason = self.reason(label, "a scripted module, whose code cannot be read")
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
        record.macs = ((Constant(macs),),) if macs else ()
        record.dtypes = [tensor.dtype for tensor in outputs]
        self.records.append(record)


class Watching(ModuleInference):
    """A mode that looks at calls, one after the other, and infers no axes: it keeps no tape and no lifetimes.

    place: how many calls were made.
    """

    def __init__(self, real: bool) -> None:
        super().__init__(real)
        self.place = 0

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        if self._is_constant(tensor):
            super().attach(tensor, value)
        else:
            tensor._fxprune_value = value  # type: ignore[attr-defined]

    def call(self, func, args, kwargs):
        facts = facts_of(func)
        if facts.is_silent:
            return func(*args, **kwargs)
        if facts.is_indexing:
            args = self.with_positions(args)
        operands = tensors_in(*args, *kwargs.values())
        result = self.run(facts, args, kwargs, operands)
        outputs = tensors_in(*result) if isinstance(result, (tuple, list)) else tensors_in(result)
        if outputs and (operands or any(t.numel() for t in outputs)):
            self.watch(func, args, kwargs, operands, outputs)
        return result

    def watch(
        self,
        func: OpOverload,
        args: tuple,
        kwargs: dict[str, object],
        operands: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> None:
        """One call was made."""
        self.place += 1

    def opaque(self, label: str, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], macs: int) -> None:
        for tensor in outputs:
            self.attach(tensor, Value(label, ()))
        self.place += 1


def is_data(value: Value) -> bool:
    return value.from_inputs or bool(value.parameters) or any(True for axis in value.axes for _ in leaves(axis))


def _keep(call: Callable[..., object], tensor: torch.Tensor, *args: object) -> object:
    """Dropout that drops nothing, and its mask."""
    return call(aten.clone.default, (tensor,), {}), call(aten.ones_like.default, (tensor,), {"dtype": torch.bool})


def _keep_flags(call: Callable[..., object], tensor: torch.Tensor, p: float = 0.5, *args: object) -> object:
    return call(aten.fill_.Scalar, (tensor, p if isinstance(p, float) else 1.0), {})


_DROPS: dict[object, Callable[..., object]] = {aten.native_dropout: _keep, aten.bernoulli_: _keep_flags}


def _swapped(item: object, tensors: dict[int, torch.Tensor]) -> Any:
    if isinstance(item, torch.Tensor):
        return tensors.get(id(item), item)
    if isinstance(item, (tuple, list)):
        return type(item)(_swapped(part, tensors) for part in item)
    if isinstance(item, dict):
        return {name: _swapped(part, tensors) for name, part in item.items()}
    return item


def input_on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """What stands for an input: whole numbers and flags keep their values (masks, places, lengths), others none."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta:
        return on_meta_device(tensor)
    return tensor.detach().clone()


def _as_places(index: object) -> object:
    """Flags with values, as an index, become the places where they are set: how many follows from the values."""
    if not isinstance(index, torch.Tensor) or index.is_meta or index.dtype != torch.bool or index.dim() != 1:
        return index
    return index.nonzero().flatten()


def on_meta_device(tensor: torch.Tensor) -> torch.Tensor:
    return empty_on_meta(tensor.shape, tensor.dtype, tensor.stride())
