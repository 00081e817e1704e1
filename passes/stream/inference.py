"""The dispatch mode that states, operator by operator, what the axes of tensors are.

Under a dispatch mode rules see normalised ATen calls: composites are decomposed and every spelling of an operator is
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from passes.axes.expressions import Axis, Constant, Reason
from passes.axes.unification import Space
from passes.graph.module_copies import PLAIN, TENSORS
from passes.graph.nodes import source_of
from passes.ops import Call, Record, Value
from passes.ops import constant_indices as numbers
from passes.ops.call import COMPUTED, slot
from passes.ops.facts import NUMBER, Facts, facts_of
from passes.ops.meta_shapes import LightMode, on_meta
from passes.process.torch_private import OpOverload

ATTRIBUTE = "_fxprune_value"
_NONE: frozenset[str] = frozenset()
_size, _parameters, _from_inputs = map(attrgetter, ("size", "parameters", "from_inputs"))
EXACT = {torch.int64, torch.int32, torch.float64, torch.float32}  # types that hold every position
ASKED = "positions of this axis are asked for as numbers, by which a program may do anything"


@contextmanager
def composite_attention() -> Iterator[None]:
    """Switch the fused encoder path off: it hides its operators from dispatch modes and from FLOP counters."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Attention in one kernel (flash, memory-efficient, or the CPU's) keeps no attention matrix; on meta it is many calls.
ONE_KERNEL: tuple[object, ...] = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def tensors_in(*arguments: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an ATen call, which nests lists at most one deep."""
    found = []
    for argument in arguments:
        kind = type(argument)
        if kind in TENSORS:
            found.append(argument)
        elif kind in PLAIN:
            continue
        elif isinstance(argument, torch.Tensor):
            found.append(argument)
        elif isinstance(argument, (tuple, list)) and not PLAIN.issuperset(map(type, argument)):
            found += [part for part in argument if isinstance(part, torch.Tensor)]
    return found


def _operands_and_template(args: tuple, kwargs: dict[str, object]) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """The tensors among the arguments of an ATen call, and its arguments with a `Slot` in place of each."""
    operands: list[torch.Tensor] = []
    made: list[object] = []
    for value in args:
        kind = type(value)
        if kind in TENSORS:
            made.append(slot(len(operands), value.dtype))
            operands.append(value)
        else:
            made.append(value if kind in PLAIN else _slotted(value, operands))
    return operands, (tuple(made), {k: _slotted(v, operands) for k, v in kwargs.items()} if kwargs else {})


def _slotted(value: Any, operands: list[torch.Tensor]) -> Any:
    kind = type(value)
    if kind in TENSORS:
        operands.append(value)
        return slot(len(operands) - 1, value.dtype)
    if kind in PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return value if PLAIN.issuperset(map(type, value)) else kind([_slotted(v, operands) for v in value])
    if isinstance(value, torch.Tensor):
        operands.append(value)
        return slot(len(operands) - 1, value.dtype)
    return value


class Inference(LightMode):
    """The dispatch mode: attaches axes to tensors as they pass, and keeps the tape of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()
        self.records: list[Record] = []
        self.values: list[Value] = []  # all that were ever attached
        self.node: fx.Node | None = None
        self.sought: tuple[Axis, int] | None = None  # see `Call.sought`
        self.one_kernel = False  # whether what runs is called in parts that a device makes in one kernel
        self.rewritten = False  # an integer tensor was written to: what numbers it holds is no longer known

    def enter_node(self, node: fx.Node) -> None:
        """Calls from here on belong to `node`."""
        self.node = node
        self.one_kernel = any(node.target is operator for operator in ONE_KERNEL)

    def label(self) -> str:
        """What the running call belongs to: the name of its node."""
        return self.node.name if self.node is not None else ""

    def source(self) -> str:
        """``file.py:line`` of the user's code that makes the running call."""
        return source_of(self.node) if self.node is not None else ""

    def value(self, tensor: torch.Tensor) -> Value:
        """What is known of `tensor`; one that inference has never seen has constant axes."""
        known = getattr(tensor, ATTRIBUTE, None)
        if known is None:
            reason = self.reason("", "a tensor that the analysis cannot follow")
            known = Value(self.label(), tuple(Constant(int(s), reason) for s in tensor.shape), from_inputs=True)
            known.numbers = numbers.literal(self.node, tensor) if tensor.is_meta else numbers.stated(tensor)
            self.attach(tensor, known)
        return known

    def numbers_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The values of an index that the program states."""
        return None if self.rewritten else self.value(tensor).numbers

    def attach(self, tensor: torch.Tensor, value: Value) -> None:
        """State the axes of `tensor`."""
        setattr(tensor, ATTRIBUTE, value)
        self.values.append(value)

    def reason(self, op: str, text: str) -> Reason:
        """`text` at the current node and operator."""
        return Reason(text, self.label(), op, self.source())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, on_meta(func, kwargs or {}))

    def emit(self, func: OpOverload, *args: object, **kwargs: object) -> Any:
        """Make one ATen call, with the mode switched off."""
        return self.call(func, args, kwargs)

    def run(self, facts: Facts, args, kwargs, operands):
        """The result of an ATen call on these tensors, without axes."""
        return facts.run_on_meta(args, kwargs)

    def call(self, func, args, kwargs):
        """The result of an ATen call, with its axes."""
        facts = facts_of(func)
        if facts.is_silent:
            return func(*args, **kwargs)
        if facts.is_indexing:
            args = self.with_positions(args)
        operands, template = _operands_and_template(args, kwargs)
        before = list(map(self.value, operands))
        result = self.run(facts, args, kwargs, operands)
        outputs = tensors_in(*result) if isinstance(result, (tuple, list)) else tensors_in(result)
        if not operands and not any(t.numel() for t in outputs):
            return result  # the workspace that a batch norm makes
        if outputs:
            self._record(facts, args, kwargs, operands, before, outputs, template)
            return result
        self.settle_sought()
        self._freeze_all(facts, before, "its values leave the graph")
        for axis in (axis for value in before for axis in value.watched):
            if func is not NUMBER or len(operands) != 1:
                self.space.freeze(axis, self.reason(facts.spelled, ASKED))
            else:
                self.sought = axis, int(result)
        return result

    def settle_sought(self) -> None:
        """The program has done something else with the number of a position than to look up what is there."""
        if self.sought is not None:
            self.space.freeze(self.sought[0], self.reason("", ASKED))
            self.sought = None

    def with_positions(self, args: tuple) -> tuple:
        """The arguments of an indexing call, flags whose values are known as positions."""
        args, positions = numbers.as_positions(args, self.numbers_of)
        for index, places in positions:
            self.value(index).numbers = places
        return args

    def _record(self, facts: Facts, args, kwargs, operands, before, outputs, template) -> None:
        func, label = facts.func, self.label()
        record = Record(label, func, before, template=template, one_kernel=self.one_kernel)
        reasons: dict[str, Reason] = {}

        def because(text: str) -> Reason:
            known = reasons.get(text)
            if known is None:
                same = next(iter(reasons.values()), None)  # of this call, whose place is known then
                known = Reason(text, same.node, same.op, same.source) if same else self.reason(facts.spelled, text)
                reasons[text] = known
            return known

        record.dtypes = [tensor.dtype for tensor in outputs]
        call = Call(func, args, kwargs, operands, outputs, self.space, self.value, record, because, *facts.signature)
        call.numbers_of = self.numbers_of
        positions = [axis for value in before for axis in value.watched]
        places = facts.traits.places if positions else None
        if positions and (places is None or (places == "kept" and not set(record.dtypes) <= EXACT)):
            call.freeze(positions, COMPUTED)
        call.sought = self.sought
        axes = self._apply_rule(facts, call, before, outputs)
        if call.sought is not None:  # no rule has taken it
            self.settle_sought()
        self.sought = None
        moved = tuple(dict.fromkeys(positions)) if places == "kept" else ()
        static = not record.macs and all(map(_parameters, before))
        parameters = _NONE.union(*map(_parameters, before)) if static else _NONE
        from_inputs = any(map(_from_inputs, before))
        identities = set(map(id, operands))
        for number, (tensor, made) in enumerate(zip(outputs, axes, strict=True)):
            if id(tensor) in identities and not facts.is_view_in_place:
                known = self.value(tensor)
                for old, new in zip(known.axes, made, strict=True):
                    call.tie(old, new)
                known.from_inputs |= from_inputs
                self.rewritten |= facts.is_mutable and not tensor.is_floating_point()
                record.outputs.append(known)
                continue
            watched = record.watched.get(number, moved)
            value = Value(f"{label}/{len(self.records)}", tuple(made), parameters, watched, from_inputs)
            if not tensor.is_floating_point():
                value.numbers = numbers.computed(func, args, kwargs, tensor, self.numbers_of, number)
            self.attach(tensor, value)
            record.outputs.append(value)
        self.records.append(record)

    def _apply_rule(
        self, facts: Facts, call: Call, before: list[Value], outputs: list[torch.Tensor]
    ) -> list[list[Axis]]:
        """The axes of the outputs; where no rule fits the call they are constants and those of the inputs freeze."""
        if facts.rule is None:
            self._freeze_all(facts, before, "no rule says what this operator does with its axes")
            return [call.fixed(n) for n in range(len(outputs))]
        try:
            axes = list(map(list, facts.rule(call)))
            for number in range(len(axes), len(outputs)):
                axes.append(call.fixed(number))
            for made, tensor in zip(axes, outputs, strict=True):
                if tuple(map(_size, made)) != tensor.shape:
                    raise ValueError(f"it gives axes {made} for a result of shape {list(tensor.shape)}")
            return axes
        except Exception as error:  # a rule is somebody's code: its failure freezes, with the reason, and never crashes
            call.record.contracted = ()
            self._freeze_all(facts, before, f"its rule does not fit this call: {type(error).__name__}: {error}")
            return [call.fixed(n) for n in range(len(outputs))]

    def _freeze_all(self, facts: Facts, values: list[Value], text: str) -> None:
        for value in values:
            for axis in value.axes:
                self.space.freeze(axis, self.reason(facts.spelled, text))
