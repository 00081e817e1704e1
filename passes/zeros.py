"""Where a removed unit is zero: whether zeroing a group's parameters zeroes what an operator sums over.

The masked network has zeros in the parameters of removed units. A convolution that sums over them is then exact; a
plain sum after a sigmoid is not (sigmoid(0) is 0.5), and the group is called mixed. This pass follows zeros along
the tape; what a pointwise operator does with zeros is found by evaluating it, so no table of functions is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from passes.axes import Axis, Variable, leaves
from passes.ops import Record, Slot, Value, find, spelled

_PROBES = 5
_MADE = ("ones", "full", "empty", "arange", "rand", "eye")
_NEVER_ZERO = ("softmax", "logsumexp", *_MADE, "fill", "scatter", "_put", "index_copy")


def unmasked_sums(records: Sequence[Record]) -> dict[int, set[Variable]]:
    """For each call, by its number, the contracted variables of which no operand is zero at removed units."""
    zeros = _Zeros()
    found: dict[int, set[Variable]] = {}
    for number, record in enumerate(records):
        factors = [v for v in record.inputs if not _is_bias(record, v)]
        summed = {
            variable
            for variable in _variables(record.contracted)
            if all(variable in zeros.living(v) for v in factors if variable in zeros.variables(v))
            or any(variable in zeros.wild.get(v.key, ()) for v in factors)
        }
        if summed:
            found[number] = summed
        effect = _effect(record)
        for output in record.outputs:
            here = _living_result(record, output, factors, zeros, effect)
            wild = _wild_result(record, output, zeros, effect)
            if wild:
                zeros.wild[output.key] = wild
                here = here | wild
            if record.func._schema.is_mutable and "copy_" in spelled(record.func):
                zeros.spilled |= here
            zeros.alive[output.key] = here
    return found


def _variables(axes: Sequence[Axis]) -> set[Variable]:
    return {v for axis in axes for v in leaves(axis)}


class _Zeros:
    """What is known so far. alive: by tensor, variables whose removed positions may hold something else than zero.

    wild: those where it may be no number (a quotient by zero), which a product with zero does not make zero again.
    """

    def __init__(self) -> None:
        self.alive: dict[int, set[Variable]] = {}
        self.wild: dict[int, set[Variable]] = {}
        self.spilled: set[Variable] = set()  # written in place through a view: counted as alive everywhere
        self._variables: dict[int, set[Variable]] = {}

    def variables(self, value: Value) -> set[Variable]:
        """The variables of a tensor's axes."""
        found = self._variables.get(value.key)
        if found is None:
            found = self._variables[value.key] = _variables(value.axes)
        return found

    def living(self, value: Value) -> set[Variable]:
        """Those of them whose removed positions may hold something else than zero."""
        return (self.alive.get(value.key, set()) | self.spilled) & self.variables(value)

    def zero(self, variable: Variable, value: Value) -> bool:
        """Whether `value` is zero wherever `variable` is removed."""
        return variable in self.variables(value) and variable not in self.living(value)


def _is_bias(record: Record, value: Value) -> bool:
    return bool(record.macs) and bool(value.parameters) and len(value.axes) == 1


def _living_result(
    record: Record, output: Value, factors: list[Value], zeros: _Zeros, effect: _Answers | None
) -> set[Variable]:
    name = spelled(record.func)
    mine = zeros.variables(output)
    if any(word in name for word in _NEVER_ZERO):
        return mine
    if record.macs:
        return {v for v in mine if all(v in zeros.living(f) for f in factors if v in zeros.variables(f))}
    if "norm" in name and "linalg" not in name:
        affine = _variables([a for v in record.inputs[1:] if v.parameters for a in v.axes])
        centred = _variables(record.mixed)
        return {v for v in mine - affine if v in centred or v in zeros.living(record.inputs[0])}
    if effect is not None:
        return {v for v in mine if not effect(tuple(zeros.zero(v, i) for i in record.inputs)).zero}
    if "zeros" in name or ("pad" in name and not _pad_value(record)):
        made = set()
    else:
        made = mine - set().union(*map(zeros.variables, record.inputs))
    return (set().union(*map(zeros.living, record.inputs)) & mine) | made


def _wild_result(record: Record, output: Value, zeros: _Zeros, effect: _Answers | None) -> set[Variable]:
    """The variables whose removed positions may hold no number in `output`."""
    mine = zeros.variables(output)
    carried: set[Variable] = set().union(*(zeros.wild.get(v.key, ()) for v in record.inputs)) & mine
    if effect is None or not effect((False,) * len(record.inputs)).finite:
        return carried  # a pointwise call that gives no numbers anyway makes none worse
    return carried | {v for v in mine - carried if not effect(tuple(zeros.zero(v, i) for i in record.inputs)).finite}


def _pad_value(record: Record) -> Any:
    args, kwargs = record.template
    return kwargs.get("value", args[2] if len(args) > 2 else 0)


@dataclass(frozen=True)
class _Effect:
    """Whether a result is zero everywhere, and whether it is made of numbers."""

    zero: bool
    finite: bool


_Answers: TypeAlias = Callable[[tuple[bool, ...]], _Effect]


def _effect(record: Record) -> _Answers | None:
    """What a pointwise call gives where those of its operands are zero that are said to be; None for other calls."""
    rule = find(record.func)
    if rule is None or rule.__name__ != "pointwise":
        return None
    key, template = repr(record.template), _Template(record.template)
    return lambda zero: _probe(record.func, key, zero, template)


class _Template:
    """Arguments that are cached by their text (`key` of `_probe`), not by themselves."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template)

    def __hash__(self) -> int:
        return 0


@cache
def _probe(func: Any, key: str, zero: tuple[bool, ...], template: _Template) -> _Effect:
    generator = torch.Generator().manual_seed(0)

    def made(slot: Any) -> Any:
        if not isinstance(slot, Slot):
            return slot
        dtype = torch.float64 if slot.dtype.is_floating_point else slot.dtype
        if zero[slot.number]:
            return torch.zeros(_PROBES, dtype=dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(_PROBES, generator=generator, dtype=dtype) * 3
        return torch.randint(0, 2, (_PROBES,), generator=generator).to(dtype)

    args, kwargs = pytree.tree_map(made, template.arguments, is_leaf=lambda x: isinstance(x, Slot))
    kwargs.pop("device", None)
    kwargs.pop("pin_memory", None)
    try:
        results = [t for t in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    except Exception:  # an operator that does not run on a handful of numbers tells nothing: count it as not zero
        return _Effect(zero=False, finite=True)
    return _Effect(all(bool((t == 0).all()) for t in results), all(bool(torch.isfinite(t).all()) for t in results))
