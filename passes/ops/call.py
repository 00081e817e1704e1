"""What a rule sees: one ATen call with its axes.

A rule is a function of a `Call` that states equalities between axes (`Call.tie`, `Call.factor`, `Call.cut`), says
which axes it sums over (`Call.contract`) or mixes (`Call.mix`), counts its multiply-accumulates (`Call.count`) and
returns the axes of its outputs, one list of axes a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from passes.axes.expressions import AXES, Axis, Constant, Inexpressible, Reason, nest
from passes.axes.unification import Space
from passes.process.torch_private import OpOverload, schema_of

aten = torch.ops.aten
COMPUTED = "positions of this axis are computed as values"
MOVED = "the operator moves over this axis as over space or time"
_ALL = slice(None)


def _listed(axes: Axis | Sequence[Axis]) -> Sequence[Axis]:
    return [axes] if isinstance(axes, AXES) else axes


def listed(numbers: object, size: int) -> list[int] | None:
    """The positions that a one-dimensional index picks of an axis of `size`; None where it is no such index."""
    if isinstance(numbers, (list, tuple)):
        flags = bool(numbers) and all(isinstance(n, bool) for n in numbers)
        if not flags and not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            return None
        numbers = torch.tensor(numbers, dtype=torch.bool if flags else torch.int64)
    if not isinstance(numbers, torch.Tensor) or numbers.dim() != 1:
        return None
    if numbers.dtype == torch.bool:
        return numbers.nonzero().flatten().tolist() if len(numbers) == size else None
    found = numbers.tolist()
    return [n % size for n in found] if size and all(-size <= n < size for n in found) else None


@dataclass
class Value:
    """What inference knows of a tensor: its label (parameter or node name) and its axes.

    parameters: the parameters and buffers that it is made of, empty where data of the inputs enters.
    from_inputs: whether data of the inputs enters.
    """

    label: str
    axes: tuple[Axis, ...]
    parameters: frozenset[str] = frozenset()
    watched: tuple[Axis, ...] = ()  # axes whose positions are its values: a use that does not know of it freezes them
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
    """One ATen call of the tape: operands and results with their axes, and what the rule said of them.

    What rules seldom say is in tuples: a tape keeps thousands of records, and each list, even an empty one, is one more
    object for Python's garbage collector to walk over.
    """

    node: str
    func: OpOverload
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    contracted: tuple[Axis, ...] = ()
    mixed: tuple[Axis, ...] = ()
    macs: tuple[tuple[Axis, ...], ...] = ()
    literals: dict[str, Axis] = field(default_factory=dict)
    lengths: dict[str, tuple[Axis, int]] = field(default_factory=dict)  # numbers: the length of an axis, and what more
    needs: tuple[tuple[Axis, int], ...] = ()  # how many positions of an axis have to stay
    crossed: tuple[int, ...] = ()  # dimensions of the operand that a view cuts across
    multiples: tuple[tuple[Axis, int], ...] = ()  # of what the length of an axis has to be one
    watched: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    template: tuple[Any, ...] = ()  # (args, kwargs) with a `Slot` for each tensor
    constants: dict[int, list[Any]] = field(default_factory=dict)  # values of small operands that no data entered
    dtypes: list[torch.dtype] = field(default_factory=list)  # of the results
    one_kernel: bool = False  # a device makes all calls of its node in one kernel

    def argument(self, *names: str) -> Any:
        """The first of these arguments that the operator has; None where it has none."""
        args, kwargs = self.template
        known, defaults = signature(self.func)
        for name in names:
            if name in kwargs:
                return kwargs[name]
            if name in known and known.index(name) < len(args):
                return args[known.index(name)]
            if name in defaults:
                return defaults[name]
        return None


@cache
def spelled(func: object) -> str:
    """The name of an operator, ``aten.relu.default``; torch puts it together anew whenever it is asked."""
    return str(func)


@cache
def signature(func: OpOverload) -> tuple[list[str], dict[str, Any]]:
    """The names of an operator's arguments in order, and the defaults of those that have one."""
    arguments = schema_of(func).arguments
    return [a.name for a in arguments], {a.name: a.default_value for a in arguments if a.has_default_value()}


class Call:
    """One ATen call under analysis. Axes that cannot be tied are frozen with a reason, never guessed.

    names, defaults: the operator's `signature`. arguments: by these names. tensors: all tensor arguments, in order.
    outputs: the results.
    numbers_of: the values of a tensor that the program states (see passes/ops/constant_indices.py), None for any other.
    """

    numbers_of: Callable[[torch.Tensor], torch.Tensor | None] = staticmethod(lambda tensor: None)
    sought: tuple[Axis, int] | None = None  # an axis and a chosen position of it, whose number the program asked for

    def __init__(
        self, func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], tensors: list[torch.Tensor],
        outputs: list[torch.Tensor], space: Space, value_of: Callable[[torch.Tensor], Value], record: Record,
        reason: Callable[[str], Reason], names: list[str], defaults: dict[str, Any],
    ) -> None:  # fmt: skip
        self.func, self.tensors, self.outputs, self.space, self.record = func, tensors, outputs, space, record
        self._value_of, self.reason = value_of, reason
        self.arguments = defaults.copy()
        self.arguments.update(zip(names, args, strict=False), **kwargs)

    def __getitem__(self, name: str) -> Any:
        """The argument called `name` in the operator's schema."""
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of several argument names that the operator's schema has; None where it has none."""
        for name in names:
            if name in self.arguments:
                return self.arguments[name]
        return None

    def axes(self, tensor: str | torch.Tensor) -> list[Axis]:
        """The axes of a tensor argument, as they stand now."""
        if isinstance(tensor, str):
            tensor = self.arguments[tensor]
        assert isinstance(tensor, torch.Tensor)
        resolve = self.space.resolve
        return [a if isinstance(a, Constant) else resolve(a) for a in self._value_of(tensor).axes]

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

    def fixed(self, output: int = 0, dims: slice = _ALL) -> list[Axis]:
        """Axes of output number `output` as constants of this call: positions that no unit of the inputs maps to.

        dims: of these dimensions alone.
        """
        shape = self.outputs[output].shape
        reason = self.reason("its positions are computed here") if any(shape) else None
        return [Constant(int(size), reason) for size in shape[dims]]

    def fresh(self, size: int) -> Axis:
        """A new variable: `size` alike units that this operator makes."""
        return self.space.variable(size)

    def freeze(self, axes: Axis | Sequence[Axis], text: str) -> None:
        """Keep all units of `axes`; `text` says why."""
        for axis in _listed(axes):
            if not isinstance(axis, Constant):
                self.space.freeze(axis, lambda: self.reason(text))

    def tie(self, left: Axis, right: Axis) -> Axis:
        """State that two axes are the same; both freeze where that cannot be expressed. Returns one of them."""
        if left is right or (isinstance(left, Constant) and isinstance(right, Constant) and left.size == right.size):
            return left
        try:
            self.space.unify(left, right, self._tied)
        except Inexpressible as error:
            self.freeze([left, right], str(error))
        return left

    def _tied(self) -> Reason:
        return self.reason("tied to an axis that stays: singled out, repeated or cut apart")

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
        self.record.contracted += axes

    def mix(self, axes: Axis | Sequence[Axis]) -> None:
        """Removing units of `axes` changes the surviving values (statistics over that axis)."""
        self.record.mixed += tuple(_listed(axes))

    def count(self, *axes: Axis) -> None:
        """The operator does as many multiply-accumulates as the product of the lengths of `axes`."""
        self.record.macs += (axes,)

    def literal(self, name: str, axis: Axis | Sequence[Axis]) -> None:
        """The call's argument `name` is the length of `axis` (a list: of each of these), so a rewriting restates it."""
        if isinstance(axis, AXES):
            self.record.literals[name] = axis
        else:
            self.record.literals.update({f"{name}.{place}": one for place, one in enumerate(axis)})

    def places(self, tensor: str | torch.Tensor) -> Axis | None:
        """The axis whose positions are the values of a tensor argument; None where they are numbers."""
        if isinstance(tensor, str):
            tensor = self.arguments[tensor]
        watched = self._value_of(tensor).watched if isinstance(tensor, torch.Tensor) else ()
        return self.space.resolve(watched[0]) if len(watched) == 1 else None

    def freeze_places(self, *tensors: torch.Tensor) -> None:
        """The positions that are the values of these tensors are used as numbers: their axes stay."""
        for tensor in tensors:
            self.freeze(list(self._value_of(tensor).watched), COMPUTED)

    def choose(self, axis: Axis, count: int, text: str) -> None:
        """`count` positions of `axis` are chosen by value, among those that are there. It stays unless it is one of
        experts: what is chosen is looked up (`look_up`), and nothing else is asked of the positions."""
        if count >= axis.size:
            self.freeze(axis, "all of its positions are chosen")
        self.record.needs += ((axis, count),)
        self.mix_if_routed(axis, text)

    def mix_if_routed(self, axis: Axis, text: str) -> None:
        """`mix` for an axis of experts; any other stays."""
        self.mix(axis)
        self.space.freeze_unless_routed(axis, self.reason(text))

    def look_up(self, axis: Axis, places: Axis) -> None:
        """Positions that were chosen of `places` are read or written on `axis`. What one has more than the other stands
        behind, where no position lies that is on both."""
        size = min(axis.size, places.size)
        self.tie(self.cut(axis, size)[0], self.cut(places, size)[0])
        self.space.route(places)

    def watch(self, output: int, axes: Iterable[Axis]) -> None:
        """The values of output number `output` are positions along `axes`: whoever uses it freezes them."""
        self.record.watched[output] = tuple(axes)
