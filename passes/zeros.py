"""Where a removed unit is zero: whether zeroing a group's parameters zeroes what an operator sums over.

The masked network has zeros in the parameters of removed units. A convolution that sums over them is then exact; a
plain sum after a sigmoid is not (sigmoid(0) is 0.5), and the group is called mixed. This pass follows zeros along
the tape; what a pointwise operator does with zeros is found by evaluating it, so no table of functions is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from passes.axes import Axis, Variable, leaves
from passes.ops import Record, Slot, Value, find

_PROBES = 5
_MADE = ("ones", "full", "empty", "arange", "rand", "eye")
_NEVER_ZERO = ("softmax", "logsumexp", *_MADE, "fill", "scatter", "_put", "index_copy")


def _variables(axes: Sequence[Axis]) -> set[Variable]:
    return {v for axis in axes for v in leaves(axis)}


def unmasked_sums(records: Sequence[Record]) -> dict[int, set[Variable]]:
    """For each call, by its number, the contracted variables of which no operand is zero at removed units."""
    alive: dict[int, set[Variable]] = {}  # by tensor: variables whose removed positions may hold something else than 0
    found: dict[int, set[Variable]] = {}
    spilled: set[Variable] = set()  # written in place through a view: counted as alive everywhere

    def living(value: Value) -> set[Variable]:
        return (alive.get(value.key, set()) | spilled) & _variables(value.axes)

    for number, record in enumerate(records):
        factors = [v for v in record.inputs if not _is_bias(record, v)]
        summed = {
            variable
            for variable in _variables(record.contracted)
            if all(variable in living(v) for v in factors if variable in _variables(v.axes))
        }
        if summed:
            found[number] = summed
        for output in record.outputs:
            here = _living_result(record, output, factors, living)
            written = record.func._schema.is_mutable
            if written:
                spilled |= here if "copy_" in str(record.func) else set()
            alive[output.key] = here
    return found


def _is_bias(record: Record, value: Value) -> bool:
    return bool(record.macs) and bool(value.parameters) and len(value.axes) == 1


def _living_result(record: Record, output: Value, factors: list[Value], living: Any) -> set[Variable]:
    name = str(record.func)
    mine = _variables(output.axes)
    known = set().union(*(_variables(v.axes) for v in record.inputs)) if record.inputs else set()
    if any(word in name for word in _NEVER_ZERO):
        return mine
    if record.macs:
        return {v for v in mine if all(v in living(f) for f in factors if v in _variables(f.axes))}
    if "norm" in name and "linalg" not in name:
        affine = _variables([a for v in record.inputs[1:] if v.parameters for a in v.axes])
        centred = _variables(record.mixed)
        return {v for v in mine - affine if v in centred or v in living(record.inputs[0])}
    rule = find(record.func)
    if rule is not None and rule.__name__ == "pointwise":
        return {v for v in mine if not _keeps_zero(record, tuple(_state(v, i, living) for i in record.inputs))}
    made = mine - known
    if "zeros" in name or ("pad" in name and not _pad_value(record)):
        made = set()
    return (set().union(*(living(v) for v in record.inputs)) & mine) | made


def _state(variable: Variable, value: Value, living: Any) -> bool:
    """Whether `value` is zero wherever `variable` is removed."""
    return variable in _variables(value.axes) and variable not in living(value)


def _pad_value(record: Record) -> Any:
    args, kwargs = record.template
    return kwargs.get("value", args[2] if len(args) > 2 else 0)


def _keeps_zero(record: Record, zero: tuple[bool, ...]) -> bool:
    key = repr(record.template)
    return _probe(record.func, key, zero, _Template(record.template))


class _Template:
    """Arguments that are cached by their text (`key` of `_probe`), not by themselves."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template)

    def __hash__(self) -> int:
        return 0


@cache
def _probe(func: Any, key: str, zero: tuple[bool, ...], template: _Template) -> bool:
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
        return False
    return all(bool((t == 0).all()) for t in results)
