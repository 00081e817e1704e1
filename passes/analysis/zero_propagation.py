"""Where a removed unit is zero: whether zeroing a group's parameters zeroes what an operator sums over.

The masked network has zeros in the parameters of removed units. A convolution that sums over them is then exact; a
plain sum after a sigmoid is not (sigmoid(0) is 0.5), and the group is called mixed. This pass follows zeros along
the tape by what each operator's rule states of them (passes/ops/zeros.py). A pointwise operator is evaluated on zeros,
and so is every operator that states nothing: a unit that is not seen to be zero counts as not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch

from passes.axes.expressions import Axis, Variable, leaves
from passes.axes.index_sets import survivors
from passes.equality.comparison import all_finite, readable
from passes.nested_values import tree_leaves_only
from passes.ops import Record, Slot, Value, traits_of
from passes.ops.zeros import EVALUATED
from passes.process.torch_private import OpOverload, pytree

_PROBES = 5
_LARGEST = 1 << 22  # elements of the operands of a call that is tried out


def unmasked_sums(records: Sequence[Record]) -> dict[int, set[Variable]]:
    """For each call, by its number, the contracted variables that add something although their units are removed."""
    return followed(records)[0]


def followed(records: Sequence[Record]) -> tuple[dict[int, set[Variable]], list[list[set[Variable]]]]:
    """`unmasked_sums`, and for each call and each of its results the variables that may not be zero when removed."""
    zeros = _Zeros()
    found: dict[int, set[Variable]] = {}
    nonzero: list[list[set[Variable]]] = []
    for number, record in enumerate(records):
        call = _Call(record, zeros)
        summed = {
            variable
            for variable in _variables(record.contracted)
            if not call.sums_nothing(variable)
            or any(variable in zeros.non_finite.get(i.key, ()) for i in record.inputs)
        }
        if summed:
            found[number] = summed
        nonzero.append([])
        for place, output in enumerate(record.outputs):
            before = zeros.may_be_nonzero(output)
            here = {v for v in zeros.variables(output) if not call.zero(v, place)}
            non_finite = call.non_finite(output)
            if non_finite:
                zeros.non_finite[output.key] = non_finite
                here = here | non_finite
            if any(output.key == value.key for value in record.inputs):
                zeros.written_in_place |= here - before
            zeros.nonzero[output.key] = here
            nonzero[-1].append(here)
    return found, nonzero


def _variables(axes: Sequence[Axis]) -> set[Variable]:
    return {v for axis in axes for v in leaves(axis)}


class _Zeros:
    """What is known so far. nonzero: by tensor, variables whose removed positions may hold something else than zero.

    non_finite: those where it may be no number (a quotient by zero), which a product with zero does not make zero.
    """

    def __init__(self) -> None:
        self.nonzero: dict[int, set[Variable]] = {}
        self.non_finite: dict[int, set[Variable]] = {}
        self.written_in_place: set[Variable] = set()  # perhaps through a view: nonzero in all but parameters
        self._variables: dict[int, set[Variable]] = {}

    def variables(self, value: Value) -> set[Variable]:
        """The variables of a tensor's axes."""
        found = self._variables.get(value.key)
        if found is None:
            found = self._variables[value.key] = _variables(value.axes)
        return found

    def may_be_nonzero(self, value: Value) -> set[Variable]:
        """Those of them whose removed positions may hold something else than zero."""
        written = set() if value.parameters else self.written_in_place
        return (self.nonzero.get(value.key, set()) | written) & self.variables(value)

    def zero(self, variable: Variable, value: Value) -> bool:
        """Whether `value` is zero wherever `variable` is removed."""
        return variable in self.variables(value) and variable not in self.may_be_nonzero(value)


class _Call:
    """One call, asked about one variable after another."""

    def __init__(self, record: Record, zeros: _Zeros) -> None:
        self.record, self.zeros = record, zeros
        self._stated = traits_of(record.func).zeros
        self._effect = _effect(record) if self._stated is EVALUATED else None

    def zero(self, variable: Variable, output: int) -> bool:
        """Whether a result is zero where the variable's units are removed."""
        pattern = self._pattern(variable)
        if self._spread(variable, output, all(pattern)):
            return False
        if self._effect is not None:
            return self._effect(pattern).zero
        if self._stated is None:
            return _tried(self.record, variable, pattern, output)
        return self._stated.result(_Unit(self, variable, output))

    def _spread(self, variable: Variable, output: int, all_zero: bool) -> bool:
        """Whether units lie along more dimensions of a result than of any operand: zero along one, but not the other.

        Not so where each dimension comes of an operand of its own, and all of these are zero.
        """
        counts = [sum(variable in leaves(axis) for axis in value.axes) for value in self.record.inputs]
        found = sum(variable in leaves(axis) for axis in self.record.outputs[output].axes)
        return found > 1 and found > max(counts, default=0) and not (all_zero and sum(counts) >= found)

    def sums_nothing(self, variable: Variable) -> bool:
        """Whether removed units add nothing where the operator sums over them."""
        if self._stated is None:
            return _tried(self.record, variable, self._pattern(variable), None)
        return self._stated.summed(_Unit(self, variable, 0))

    def non_finite(self, output: Value) -> set[Variable]:
        """The variables whose removed positions may hold no number in `output`."""
        mine = self.zeros.variables(output)
        carried: set[Variable] = set().union(*(self.zeros.non_finite.get(v.key, ()) for v in self.record.inputs)) & mine
        if self._effect is None or not self._effect((False,) * len(self.record.inputs)).finite:
            return carried  # a pointwise call that gives no numbers anyway makes none worse
        return carried | {v for v in mine - carried if not self._effect(self._pattern(v)).finite}

    def _pattern(self, variable: Variable) -> tuple[bool, ...]:
        return tuple(self.zeros.zero(variable, value) for value in self.record.inputs)


@dataclass(frozen=True)
class _Unit:
    """What a trait of passes/ops/zeros.py asks of a call."""

    call: _Call
    variable: Variable
    output: int

    @property
    def mixed(self) -> bool:
        return self.variable in _variables(self.call.record.mixed)

    def zero(self, *names: str) -> bool:
        given = self.argument(*names)
        inputs = self.call.record.inputs
        return given is None or (isinstance(given, Slot) and self.call.zeros.zero(self.variable, inputs[given.number]))

    def zeros(self) -> list[bool]:
        known = self.call.zeros
        return [known.zero(self.variable, v) for v in self.call.record.inputs if self.variable in known.variables(v)]

    def argument(self, *names: str) -> Any:
        return self.call.record.argument(*names)


def _tried(record: Record, variable: Variable, pattern: tuple[bool, ...], output: int | None) -> bool:
    """Run an operator that states nothing on random operands, zero at half of the variable's units where `pattern` is.

    With `output`: whether that result is zero at these units. Without: whether it is the same with them left out.
    """
    shapes = [tuple(axis.size for axis in value.axes) for value in record.inputs]
    if not any(pattern) or variable.size < 2 or sum(int(np.prod(shape)) for shape in shapes) > _LARGEST:
        return False
    keep = np.arange(variable.size) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    remaining = [
        [torch.from_numpy(np.flatnonzero(survivors(axis, {variable: keep}))) for axis in value.axes]
        for value in (*record.inputs, *record.outputs)
    ]

    def operand(slot: Slot) -> torch.Tensor:
        value = _random(shapes[slot.number], slot.dtype, generator)
        for dim, places in enumerate(remaining[slot.number] if pattern[slot.number] else ()):
            if len(places) < value.shape[dim]:
                gone = torch.ones(value.shape[dim], dtype=torch.bool)
                gone[places] = False
                value.index_fill_(dim, gone.nonzero().flatten(), 0)
        return value

    def known(operands: dict[int, torch.Tensor], slot: Slot) -> torch.Tensor:
        return operands.setdefault(slot.number, operand(slot))

    def left(operands: dict[int, torch.Tensor], slot: Slot) -> torch.Tensor:
        value = operands[slot.number]
        for dim, places in enumerate(remaining[slot.number]):
            value = value.index_select(dim, places) if len(places) < value.shape[dim] else value
        return value

    try:
        for _ in range(2):
            operands: dict[int, torch.Tensor] = {}
            whole = _ran(record, partial(known, operands))
            if output is None:
                part = _ran(record, partial(left, operands))
                if not all(map(_alike, whole, part)):
                    return False
                continue
            result = whole[output]
            for dim, places in enumerate(remaining[len(record.inputs) + output]):
                if len(places) < result.shape[dim]:
                    gone = torch.ones(result.shape[dim], dtype=torch.bool)
                    gone[places] = False
                    if bool((result.index_select(dim, gone.nonzero().flatten()) != 0).any()):
                        return False
    except Exception:  # an operator that does not run here, or on fewer units, shows nothing: not zero
        return False
    return True


def _alike(whole: torch.Tensor, part: torch.Tensor) -> bool:
    return whole.shape == part.shape and torch.allclose(whole, part, rtol=1e-9, atol=1e-12)


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        kind = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=kind) * 3
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _ran(record: Record, operand: Callable[[Slot], torch.Tensor]) -> list[torch.Tensor]:
    """The results of a call on other operands."""
    fill = lambda leaf: operand(leaf).clone() if isinstance(leaf, Slot) else leaf  # noqa: E731
    args, kwargs = pytree.tree_map(fill, record.template, is_leaf=lambda leaf: isinstance(leaf, Slot))
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    with torch.no_grad():
        return tree_leaves_only(torch.Tensor, record.func(*args, **kwargs))


@dataclass(frozen=True)
class _Effect:
    """Whether a result is zero everywhere, and whether it is made of numbers."""

    zero: bool
    finite: bool


_Answers: TypeAlias = Callable[[tuple[bool, ...]], _Effect]


def _effect(record: Record) -> _Answers:
    """What a pointwise call gives where those of its operands are zero that are said to be."""
    key, template = repr(record.template), _Template(record.template)
    return lambda zero: _probe(record.func, key, zero, template)


class _Template:
    """Arguments that are cached by their text (`key` of `_probe`), not by themselves."""

    def __init__(self, arguments: tuple[object, ...]) -> None:
        self.arguments = arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template)

    def __hash__(self) -> int:
        return 0


@cache
def _probe(func: OpOverload, key: str, zero: tuple[bool, ...], template: _Template) -> _Effect:
    generator = torch.Generator().manual_seed(0)

    def made(slot: object) -> Any:
        if not isinstance(slot, Slot):
            return slot
        value = _random((_PROBES,), slot.dtype, generator)
        return value.zero_() if zero[slot.number] else value

    args, kwargs = pytree.tree_map(made, template.arguments, is_leaf=lambda x: isinstance(x, Slot))
    kwargs.pop("device", None)
    kwargs.pop("pin_memory", None)
    try:
        results = list(map(readable, tree_leaves_only(torch.Tensor, func(*args, **kwargs))))
    except Exception:  # an operator that does not run on a few numbers shows nothing: count it as not zero
        return _Effect(zero=False, finite=True)
    return _Effect(all(bool((t == 0).all()) for t in results), all(map(all_finite, results)))
