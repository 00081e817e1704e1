"""The table of operators: the rule of each, and its traits, what else is to be known of it.

Rules and traits are keyed by operator objects, and what is stated of an operator holds for its in-place variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from passes.arguments import flag, got, is_a
from passes.axes.expressions import Axis
from passes.errors import ArgumentError, PassError
from passes.ops.call import Call
from passes.ops.literals import Site
from passes.ops.references import Masked
from passes.ops.zeros import CARRIED, NEVER, Zeros
from passes.process.torch_private import OpOverload, OpOverloadPacket, qualified_operator

Rule = Callable[[Call], Sequence[Sequence[Axis]]]
NumbersOf = Callable[[Any], Any]  # the numbers of an index among the arguments, None where none are stated
Picked = dict[int, list[int]]  # by dimension of the operand the places taken of it, in order; -1 for padding
_KINDS = (OpOverload, OpOverloadPacket)


class DuplicateRule(PassError, ValueError):
    """Two rules for one operator."""


@dataclass(frozen=True)
class Traits:
    """What is stated of an operator beside its axes. What is left out is tried out, or taken as the unsafe case.

    zeros: whether a unit that is zero in all operands is zero in the results, True or False, or a claim of
    passes/ops/zeros.py that says more. Left out, it is tried out on numbers.
    reference: what the operator gives on surviving units alone (passes/ops/references.py). Left out, axes that it
    mixes stay.
    literals: restates the sizes among the arguments of a node (passes/ops/literals.py). Left out, those are restated
    that the rule names by `Call.literal`.
    values: arguments that are numbers to compute with, where all other numbers are sizes or places. Left out, every
    number is one to compute with, unless there are `literals`.
    sizeless: no argument is a size, so that the result's shape follows of itself. Left out, the node is run.
    meta: results on the meta device for a call's arguments, or None where torch is to say. Left out, torch says.
    roles: by argument, what a parameter's units are there: "output", "scale" (see `Slice`). Left out, rows and columns
    of a contraction are distinguished by what is contracted.
    picks: which positions of its first operand a call takes (passes/ops/picked_positions.py).
    reads: how a contraction reads its weight and its data (passes/ops/operands.py). Left out, it is not observed.
    fuses: a backend runs it as a part of the operator before it. Left out, it takes time of its own.
    undetermined: arguments do not say what the result holds (memory that nothing was written to).
    places: what becomes of operands whose values are positions of an axis (`Call.places`): "kept", the results hold the
    same ones, moved; "read", the rule says. Left out, that axis stays.
    running_statistics: it normalises channels by running statistics, as batch norms in eval mode do.
    onnx: the same call in ONNX, for latency by ONNX Runtime: a function of `fxprune.latency`'s Call. Left out, a
    network with the operator has no latency there.
    """

    zeros: Zeros | None = None
    reference: Callable[[Masked], object] | None = None
    literals: Callable[[Site], None] | None = None
    values: tuple[str, ...] | None = None
    sizeless: bool = False
    meta: Callable[..., object] | None = None
    roles: Mapping[str, str] | None = None
    picks: Callable[[dict[str, Any], list[int], NumbersOf], Picked | None] | None = None
    reads: Callable[..., Any] | None = None
    fuses: bool = False
    undetermined: bool = False
    places: str | None = None
    running_statistics: bool = False
    onnx: Callable[[Any], Any] | None = None


_NAMES = frozenset(field.name for field in fields(Traits))
_FUNCTIONS = frozenset(("reference", "literals", "meta", "picks", "reads", "onnx"))
_rules: dict[object, Rule] = {}
_by_name: dict[str, dict[object, None]] = {}  # the keys of rules by the name of their packet
_stated: dict[Any, dict[str, Any]] = {}
known_facts: dict[int, Any] = {}  # what passes/ops/facts.py has made of both, by the id of an operator


def rule(*operators: object, override: bool = False, **traits: object) -> Callable[[Rule], Rule]:
    """Register a rule for operators: overload packets (all overloads), single overloads, or names.

    A name, ``"library::operator"``, is for an operator that a library defines when it is imported.
    traits: what else is stated of them, by the names of `Traits`. override: replace a rule that is there, with all
    that was stated at it; else a second rule raises DuplicateRule, also where one is of a packet and the other of one
    of its overloads. Of a packet `override` replaces the rules of its overloads as well; of an overload it leaves what
    the packet says of the others. An operator that is only covered by what holds for all pointwise ones (relu), or an
    in-place variant that is covered by its functional one (relu_), has no rule of its own, and takes one without it.

    >>> import torch
    >>> @rule(torch.ops.aten.my_identity, zeros=True)          # doctest: +SKIP
    ... def my_identity(call): return [call.axes("self")]
    """

    for operator in operators:
        if not (isinstance(operator, str) and (operator == "pointwise" or "::" in operator)):
            is_a(operator, _KINDS, "rule", "an operator such as torch.ops.aten.relu or torch.ops.aten.relu.default")
    _check(operators, traits, "rule")
    flag(override, "rule: override")

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise ArgumentError(f"rule: got {got(function)}; expected a function of a Call that returns axes")
        for operator in operators:
            for key in () if override else _spoken_of(operator):
                of = "" if key == operator else f", of {key}"
                name = getattr(_rules[key], "__name__", "")
                raise DuplicateRule(f"{operator} has a rule already ({name}{of}); remove one, or pass override=True")
        for operator in operators:
            if override:
                own = [operator] if isinstance(operator, OpOverload) else [operator, *_spoken_of(operator)]
                for key in own:
                    _take_out(key)
            _rules[operator] = function
            _by_name.setdefault(_name_of(operator), {})[operator] = None
        states(*operators, **traits)
        return function

    return register


def states(*operators: object, **traits: object) -> None:
    """State traits, by the names of `Traits`, of operators whose rule is another's, or that are made of others.

    >>> import torch
    >>> states(torch.ops.aten.my_identity, fuses=True)         # doctest: +SKIP
    """
    _check(operators, traits, "states")
    if isinstance(zeros := traits.get("zeros"), bool):
        traits["zeros"] = CARRIED if zeros else NEVER
    for operator in operators:
        _stated.setdefault(operator, {}).update({name: value for name, value in traits.items() if value is not None})
    _forget()


def _check(operators: Sequence[object], traits: Mapping[str, object], what: str) -> None:
    if not operators:
        raise ArgumentError(f"{what}: got no operator; expected at least one, such as torch.ops.aten.relu")
    for name, value in traits.items():
        if name not in _NAMES:
            raise ArgumentError(f"{what}: {name!r} is no trait; there are {', '.join(sorted(_NAMES))}")
        if name in _FUNCTIONS and value is not None and not callable(value):
            raise ArgumentError(f"{what}: {name}: got {got(value)}; expected a function")
    is_a(traits.get("zeros"), (bool, Zeros, type(None)), f"{what}: zeros", "True, False or a claim of passes.ops.zeros")


def unregister(*operators: object) -> None:
    """Take the rules of `operators` out of the table again; an operator without one is passed over."""
    for operator in operators:
        _take_out(operator)
    _forget()


def _take_out(operator: object) -> None:
    _rules.pop(operator, None)
    _stated.pop(operator, None)
    _by_name.get(_name_of(operator), {}).pop(operator, None)


def _spoken_of(operator: object) -> list[object]:
    """Where rules stand that speak of calls of this operator: its own, its packet's, its overloads', its name's."""
    found = _by_name.get(_name_of(operator), {})
    both = isinstance(operator, OpOverload)
    return [key for key in found if key == operator or not (both and isinstance(key, OpOverload))]


def _name_of(operator: object) -> str:
    packet = operator.overloadpacket if isinstance(operator, OpOverload) else operator
    return qualified_operator(packet) if isinstance(packet, OpOverloadPacket) else str(packet)


def _forget() -> None:
    for answers in (find, traits_of, packet_traits):
        answers.cache_clear()
    known_facts.clear()


@cache
def find(func: OpOverload) -> Rule | None:
    """The rule of an operator: its overload's, its packet's, or for an in-place variant the functional one's."""
    return _rules.get(_keys(func)[-1])


@cache
def traits_of(func: OpOverload) -> Traits:
    """What is stated of an operator, where its rule is found and for the operator itself."""
    return Traits(**_stated_of(func))


def _stated_of(func: OpOverload) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in reversed(_keys(func)):
        found.update(_stated.get(key, {}))
    return found


@cache
def packet_traits(operator: object) -> Traits:
    """What is stated of the operator that a node of a graph names, which may be a packet or a Python function.

    Of a packet: what is stated of it; all else is that of its first overload with stated `literals` or `values`.
    """
    if isinstance(operator, OpOverload):
        return traits_of(operator)
    if not isinstance(operator, OpOverloadPacket):
        return Traits(**_stated.get(operator, {}))
    overloads = [getattr(operator, name) for name in operator.overloads()]
    described = (o for o in overloads if {"literals", "values"} & _stated_of(o).keys())
    return Traits(**{**_stated_of(next(described, overloads[0])), **_stated.get(operator, {})})


def _keys(func: OpOverload) -> list[object]:
    """Where something may be stated of an operator, the nearest first, as far as the one that has its rule."""
    packet = func.overloadpacket
    functional = _functional(packet)
    near = [func, packet, qualified_operator(packet), *([functional] if functional is not None else [])]
    for number, key in enumerate(near):
        if key in _rules:
            return near[: number + 1]
    tagged = torch.Tag.pointwise in func.tags or (functional is not None and _is_pointwise(functional))
    return [*near, "pointwise"] if tagged else near


def _is_pointwise(packet: OpOverloadPacket) -> bool:
    return any(torch.Tag.pointwise in getattr(packet, name).tags for name in packet.overloads())


def _functional(packet: OpOverloadPacket) -> OpOverloadPacket | None:
    namespace, _, name = qualified_operator(packet).partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    found: OpOverloadPacket | None = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return found
