"""What operators do with zeros: whether a removed unit, zero in what they are given, is zero in what they give.

A rule states it with one of these traits, for its own operators and not by their names. What a rule does not state is
tried out on numbers (`passes.analysis.zero_propagation`), and where that is not possible the unit counts as not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Unit(Protocol):
    """A removed unit at one call of an operator."""

    @property
    def mixed(self) -> bool:
        """Whether the operator takes statistics over it."""

    @property
    def output(self) -> int:
        """The number of the result that is asked about."""

    def zero(self, *names: str) -> bool:
        """Whether the operand of the first of these names that the operator has is zero there; one left out is."""

    def zeros(self) -> Sequence[bool]:
        """Of each operand that has the unit whether it is zero there."""

    def argument(self, *names: str) -> Any:
        """The first of these arguments that the operator has."""


Claim = Callable[[Unit], bool]


@dataclass(frozen=True)
class Zeros:
    """What an operator does with a removed unit.

    result: whether the unit is zero in a result. summed: whether it adds nothing where the operator sums over it.
    """

    result: Claim
    summed: Claim


def _all(unit: Unit) -> bool:
    found = unit.zeros()
    return bool(found) and all(found)


def _any(unit: Unit) -> bool:
    return any(unit.zeros())


def _no(unit: Unit) -> bool:
    return False


def _first_result(unit: Unit) -> bool:
    return unit.output == 0 and _all(unit)


CARRIED = Zeros(_all, _all)  # every position of a result is one of an operand, a sum of some, or zero
FIRST = Zeros(_first_result, _all)  # so is the first result; others are places or counts
PRODUCT = Zeros(_any, _any)  # products of one factor of each operand, summed
NEVER = Zeros(_no, _all)  # made of something else than the operands, or moved away from zero
ALWAYS = Zeros(lambda unit: True, _all)
EVALUATED = Zeros(_no, _all)  # position by position: `passes.analysis.zero_propagation` evaluates the operator


def product(factors: Sequence[str], added: Sequence[str] = ()) -> Zeros:
    """A product of `factors` (of each, the names that it goes by), to which the operands `added` are added."""
    split = [name.split("|") for name in factors]

    def summed(unit: Unit) -> bool:
        return any(unit.zero(*names) for names in split)

    return Zeros(lambda unit: summed(unit) and all(unit.zero(name) for name in added), summed)


def taken(operand: str) -> Zeros:
    """Positions of one operand, weighted by what the others say; sums over products of the others."""
    return Zeros(lambda unit: unit.output == 0 and unit.zero(operand), _any)


def normalised(centred: bool, mean: str = "") -> Zeros:
    """Scaled, with `centred` moved by a mean (that of the operand `mean`, if given), and an affine map of that."""

    def result(unit: Unit) -> bool:
        kept = unit.zero("input", "self") and unit.zero(mean or "none") and not (centred and unit.mixed)
        return unit.output == 0 and unit.zero("bias") and (kept or _weighted(unit))

    def _weighted(unit: Unit) -> bool:
        return unit.argument("weight") is not None and unit.zero("weight")

    return Zeros(result, _all)
