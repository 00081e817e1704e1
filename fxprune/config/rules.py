"""What a configuration value may be: small rules, each with the words that an error says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fxprune.registries import Registry, name_of


@dataclass(frozen=True)
class Rule:
    """`read` returns the value in its canonical type or raises ValueError; `expected` is what an error says."""

    expected: str
    read: Callable[[Any], Any]


class WrongEntry(ValueError):
    """A wrong value of one entry of a table; `entry` is its name."""

    def __init__(self, entry: str, text: str):
        super().__init__(text)
        self.entry = entry


def number(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Rule:
    bounds = {"more than": above, "at least": least, "less than": below, "at most": most}
    said = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def read(value: Any) -> float:
        if isinstance(value, str):  # YAML 1.1 takes 1e-3, which has no dot, for text
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError
        found = float(value)
        if (above is not None and found <= above) or (least is not None and found < least):
            raise ValueError
        if (below is not None and found >= below) or (most is not None and found > most):
            raise ValueError
        return int(value) if isinstance(value, Integral) else found

    return Rule(f"a number {said}".rstrip(), read)


def integer(*, least: int, most: int | None = None, also: int | None = None) -> Rule:
    def read(value: Any) -> int:
        if isinstance(value, float | str) and float(value).is_integer():  # 1e4 in YAML
            value = int(float(value))
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError
        found = int(value)
        if (found < least and found != also) or (most is not None and found > most):
            raise ValueError
        return found

    said = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    return Rule(said + (f", or {also}" if also is not None else ""), read)


def choice(*names: str) -> Rule:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Rule(" or ".join(repr(name) for name in names), read)


def flag() -> Rule:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", read)


def text() -> Rule:
    def read(value: Any) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        return str(value)

    return Rule("text", read)


def texts() -> Rule:
    def read(value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str) or not hasattr(value, "__iter__") or not all(isinstance(item, str) for item in value):
            raise ValueError
        return tuple(value)

    return Rule("a list of names", read)


def name_sets() -> Rule:
    """Names, and lists of names."""

    def read(value: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError
        one = texts()
        return tuple(item if isinstance(item, str) else one.read(item) for item in value)

    return Rule("a list of names, or of lists of names", read)


def table(values: Rule | None = None) -> Rule:
    def read(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ValueError
        found = {}
        for key, item in value.items():
            try:
                found[str(key)] = values.read(item) if values else item
            except (ValueError, TypeError, OverflowError):
                assert values is not None, "only a rule refuses"
                raise WrongEntry(str(key), f"{key}: {short(item)} is not {values.expected}") from None
        return found

    return Rule("a table of names" + (f", each with {values.expected}" if values else ""), read)


def tables() -> Rule:
    def read(value: Any) -> tuple[dict[str, Any], ...]:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError
        items = [item.to_dict() if hasattr(item, "to_dict") else item for item in value]
        if not items or not all(isinstance(item, Mapping) for item in items):
            raise ValueError
        return tuple(dict(item) for item in items)

    return Rule("a list of tables such as {resource: latency, ratio: 0.6}", read)


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda value: None if value is None else rule.read(value))


def either(first: Rule, second: Rule) -> Rule:
    def read(value: Any) -> Any:
        try:
            return first.read(value)
        except (ValueError, TypeError, OverflowError):
            return second.read(value)

    return Rule(f"{first.expected}, or {second.expected}", read)


def registered(registry: Registry) -> Rule:
    """A name of `registry`, or an object that it could hold."""
    return Rule(
        f"a {registry.kind}: {', '.join(registry.built_in)}, one that is registered, or the object", registry.read
    )


def checked_by(function: Callable[[Any], Any], expected: str) -> Rule:
    return Rule(expected, function)


def short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, a list that holds itself
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(value: Any) -> Any:
    """As JSON and YAML have it: lists for tuples, all the way down."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float) else name_of(value)
