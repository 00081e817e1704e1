"""The table of operator rules, and what a rule sees: one ATen call with its axes.

A rule is a function of a `Call` that states equalities between axes (`Call.tie`, `Call.factor`, `Call.cut`), says
which axes it sums over (`Call.contract`) or mixes (`Call.mix`), counts its multiply-accumulates (`Call.count`) and
returns the axes of its outputs, one list of axes a tensor. An operator without a rule freezes its own axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from passes.arguments import got, is_a
from passes.axes.expressions import Axis, Constant, Inexpressible, Reason, nest
from passes.axes.unification import Space
from passes.errors import ArgumentError, PassError
from passes.ops.constant_indices import listed
from passes.ops.zeros import CARRIED, EVALUATED, NEVER, Zeros

Rule = Callable[["Call"], Sequence[Sequence[Axis]]]
aten = torch.ops.aten

_rules: dict[Any, Rule] = {}
_zeros: dict[Any, Zeros] = {}


class DuplicateRule(PassError, ValueError):
    """Two rules for one operator."""


def rule(*operators: Any, zeros: Zeros | bool | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operators: overload packets (all overloads) or single overloads.

    zeros: whether a unit that is zero in all operands is zero in the results (or a trait of passes/ops/zeros.py that
    says more). What is not stated is tried out on numbers.

    >>> import torch
    >>> @rule(torch.ops.aten.my_identity)                      # doctest: +SKIP
    ... def my_identity(call): return [call.axes("self")]
    """

    kinds = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
    for operator in operators:
        if operator != "pointwise":
            is_a(operator, kinds, "rule", "an operator such as torch.ops.aten.relu or torch.ops.aten.relu.default")
    if not operators:
        raise ArgumentError("rule: got no operator; expected at least one, such as torch.ops.aten.relu")

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise ArgumentError(f"rule: got {got(function)}; expected a function of a Call that returns axes")
        for operator in operators:
            if operator in _rules:
                name = getattr(_rules[operator], "__name__", "")
                raise DuplicateRule(f"{operator} has a rule already ({name}); remove one")
            _rules[operator] = function
            if zeros is not None:
                _zeros[operator] = zeros if isinstance(zeros, Zeros) else CARRIED if zeros else NEVER
        find.cache_clear()
        zeros_of.cache_clear()
        return function

    return register


def unregister(*operators: Any) -> None:
    """Take the rules of `operators` out of the table again; an operator without one is passed over."""
    for operator in operators:
        _rules.pop(operator, None)
        _zeros.pop(operator, None)
    find.cache_clear()
    zeros_of.cache_clear()


@cache
def find(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator: its overload's, its packet's, or for an in-place variant the functional one's."""
    packet = func.overloadpacket
    found = _rules.get(func) or _rules.get(packet)
    if found is None and torch.Tag.pointwise in func.tags:
        return _rules["pointwise"]
    if found is None:
        functional = _functional(packet)
        if functional is not None:
            found = _rules.get(functional)
            if found is None and any(
                torch.Tag.pointwise in getattr(functional, name).tags for name in functional.overloads()
            ):
                return _rules["pointwise"]
    return found


@cache
def zeros_of(func: torch._ops.OpOverload) -> Zeros | None:
    """What is stated of an operator and zeros, found as `find` finds its rule; None where nothing is."""
    packet = func.overloadpacket
    stated = _zeros.get(func) or _zeros.get(packet)
    if stated is not None:
        return stated
    if func in _rules or packet in _rules:
        return None
    if torch.Tag.pointwise in func.tags:
        return EVALUATED
    functional = _functional(packet)
    if functional is not None and functional not in _zeros and functional not in _rules:
        tagged = any(torch.Tag.pointwise in getattr(functional, name).tags for name in functional.overloads())
        return EVALUATED if tagged else None
    return _zeros.get(functional)


def _functional(packet: Any) -> Any:
    namespace, _, name = packet._qualified_op_name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(getattr(torch.ops, namespace), name[:-1], None)


def _listed(axes: Axis | Sequence[Axis]) -> Sequence[Axis]:
    return axes if isinstance(axes, (list, tuple)) else [axes]  # type: ignore[list-item]


@dataclass
class Value:
    """What inference knows of a tensor: its label (parameter or node name) and its axes.

    parameters: the parameters and buffers that it is made of, empty where data of the inputs enters.
    from_inputs: whether data of the inputs enters.
    """

    label: str
    axes: tuple[Axis, ...]
    parameters: frozenset[str] = frozenset()
    watched: tuple[Axis, ...] = ()  # axes whose positions are this tensor's values: its use freezes them
    from_inputs: bool = False
    numbers: torch.Tensor | None = None  # its values, where it is an index that the program states
    key: int = field(default_factory=itertools.count().__next__)  # one number a tensor, kept when axes are resolved


@dataclass(frozen=True)
class Slot:
    """Where a tensor stood in the arguments of a recorded call: its number among the operands and its dtype."""

    number: int
    dtype: torch.dtype


slot = cache(Slot)  # few there are, and a frozen dataclass takes its time


@dataclass
class Record:
    """One ATen call of the tape: operands and results with their axes, and what the rule said of them."""

    node: str
    func: Any
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    contracted: list[Axis] = field(default_factory=list)
    mixed: list[Axis] = field(default_factory=list)
    macs: list[tuple[Axis, ...]] = field(default_factory=list)
    literals: dict[str, Axis] = field(default_factory=dict)
    watched: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    template: tuple[Any, ...] = ()  # (args, kwargs) with a `Slot` for each tensor
    constants: dict[int, list[Any]] = field(default_factory=dict)  # values of small operands that no data entered


@cache
def spelled(func: Any) -> str:
    """The name of an operator, ``aten.relu.default``; torch puts it together anew whenever it is asked."""
    return str(func)


@cache
def signature(func: torch._ops.OpOverload) -> tuple[list[str], dict[str, Any]]:
    """The names of an operator's arguments in order, and the defaults of those that have one."""
    arguments = func._schema.arguments
    return [a.name for a in arguments], {a.name: a.default_value for a in arguments if a.has_default_value()}


class Call:
    """One ATen call under analysis. Axes that cannot be tied are frozen with a reason, never guessed.

    arguments: by the names of the operator's schema. tensors: all tensor arguments, in order. outputs: the results.
    numbers_of: the values of a tensor that the program states (see passes/ops/constant_indices.py), None for any other.
    """

    numbers_of: Callable[[torch.Tensor], torch.Tensor | None] = staticmethod(lambda tensor: None)

    def __init__(
        self, func: Any, args: tuple, kwargs: dict, tensors: list[torch.Tensor], outputs: list[torch.Tensor],
        space: Space, value_of: Callable[[torch.Tensor], Value], record: Record, reason: Callable[[str], Reason],
    ) -> None:  # fmt: skip
        self.func, self.tensors, self.outputs, self.space, self.record = func, tensors, outputs, space, record
        self._value_of, self._reason = value_of, reason
        names, defaults = signature(func)
        self.arguments = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}

    def __getitem__(self, name: str) -> Any:
        """The argument called `name` in the operator's schema."""
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of several argument names that the operator's schema has; None where it has none."""
        return next((self.arguments[n] for n in names if n in self.arguments), None)

    def axes(self, tensor: str | torch.Tensor) -> list[Axis]:
        """The axes of a tensor argument, as they stand now."""
        if isinstance(tensor, str):
            tensor = self.arguments[tensor]
        assert isinstance(tensor, torch.Tensor)
        return [self.space.resolve(a) for a in self._value_of(tensor).axes]

    def positions(self, tensor: torch.Tensor, size: int) -> list[int] | None:
        """The positions that an index tensor picks of an axis of `size`, where the program states them."""
        return listed(self.numbers_of(tensor), size)

    def pick(self, axis: Axis, order: Sequence[int], text: str) -> Axis | None:
        """Positions `order` of `axis` (see Space.pick); frozen, and None, where that cannot be expressed."""
        try:
            return self.space.pick(axis, order)
        except Inexpressible as error:
            self.freeze(axis, f"{text}: {error}")
            return None

    def fixed(self, output: int = 0) -> list[Axis]:
        """Axes of output number `output` as constants of this call: positions that no unit of the inputs maps to."""
        reason = self._reason("its positions are computed here")
        return [Constant(int(size), reason) for size in self.outputs[output].shape]

    def fresh(self, size: int) -> Axis:
        """A new variable: `size` alike units that this operator makes."""
        return self.space.variable(size)

    def freeze(self, axes: Axis | Sequence[Axis], text: str) -> None:
        """Keep all units of `axes`; `text` says why."""
        for axis in _listed(axes):
            if not isinstance(axis, Constant):
                self.space.freeze(axis, lambda: self._reason(text))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """State that two axes are the same; both freeze where that cannot be expressed. Returns one of them."""
        if left is right:
            return left
        try:
            self.space.unify(left, right, self._tied)
        except Inexpressible as error:
            self.freeze([left, right], str(error))
        return left

    def _tied(self) -> Reason:
        return self._reason("tied to an axis that stays: singled out, repeated or cut apart")

    def factor(self, axis: Axis, inner_size: int) -> tuple[Axis, Axis]:
        """`axis` as outer * inner (see Space.factor); frozen where that cannot be expressed."""
        try:
            return self.space.factor(axis, inner_size)
        except Inexpressible as error:
            self.freeze(axis, str(error))
            return self.space.factor(self.space.resolve(axis), inner_size)

    def cut(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        """`axis` cut in two (see Space.cut); frozen where that cannot be expressed."""
        try:
            return self.space.cut(axis, position)
        except Inexpressible as error:
            self.freeze(axis, str(error))
            return self.space.cut(self.space.resolve(axis), position)

    def slice(self, axis: Axis, start: int, stop: int) -> Axis:
        """Positions ``start:stop`` of `axis`."""
        return self.cut(self.cut(axis, stop)[0], start)[1]

    def refactor(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """The product of `axes` seen as dimensions of the given sizes, outer to inner."""
        outer = self.space.resolve(nest(axes))
        result: list[Axis] = []
        for size in reversed(sizes[1:]):
            outer, inner = self.factor(outer, size)
            result.append(inner)
        result.append(outer)
        return result[::-1]

    def contract(self, *axes: Axis) -> None:
        """The operator sums over `axes`: removing a unit there equals zeroing it."""
        self.record.contracted.extend(axes)

    def mix(self, axes: Axis | Sequence[Axis]) -> None:
        """Removing units of `axes` changes the surviving values (statistics over that axis)."""
        self.record.mixed.extend(_listed(axes))

    def count(self, *axes: Axis) -> None:
        """The operator does as many multiply-accumulates as the product of the lengths of `axes`."""
        self.record.macs.append(axes)

    def literal(self, name: str, axis: Axis) -> None:
        """The call's argument `name` is the length of `axis`, so a rewriting must restate it."""
        self.record.literals[name] = axis

    def watch(self, output: int, axes: Iterable[Axis]) -> None:
        """The values of output number `output` are positions along `axes`: whoever uses it freezes them."""
        self.record.watched[output] = tuple(axes)
