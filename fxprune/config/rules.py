"""What a configuration value may be: small rules, each with the words that an error says."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fxprune.registries import Registry, name_of
from passes.arguments import quoted


@dataclass(frozen=True)
class Rule:
    """`read` returns the value in its canonical type or raises ValueError; `expected` is what an error says.

    schema: the same for editors, as JSON Schema. entries: those of a table whose names are known.
    """

    expected: str
    read: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One known name of a table: its rule, its meaning, and what it is where it is left out."""

    check: Rule
    doc: str
    default: Any = None


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

    def read(value: object) -> float:
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

    limits = {"exclusiveMinimum": above, "minimum": least, "exclusiveMaximum": below, "maximum": most}
    return Rule(f"a number {said}".rstrip(), read, {"type": "number", **_given(limits)})


def integer(*, least: int, most: int | None = None, also: int | None = None) -> Rule:
    def read(value: object) -> int:
        if isinstance(value, float | str) and float(value).is_integer():  # 1e4 in YAML
            value = int(float(value))
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError
        found = int(value)
        if (found < least and found != also) or (most is not None and found > most):
            raise ValueError
        return found

    said = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    schema: dict[str, object] = {"type": "integer", **_given({"minimum": least, "maximum": most})}
    if also is not None:
        schema = {"anyOf": [schema, {"const": also}]}
    return Rule(said + (f", or {also}" if also is not None else ""), read, schema)


def choice(*names: str) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return Rule(" or ".join(repr(name) for name in names), read, {"enum": list(names)})


def flag() -> Rule:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", read, {"type": "boolean"})


def text() -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        return str(value)

    return Rule("text", read, {"type": "string"})


def _items(value: object) -> tuple[Any, ...]:
    """What is listed. Raises ValueError where nothing is, or the object itself cannot say."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError
    try:
        return tuple(value)
    except Exception as error:  # an object of the user's own
        raise ValueError from error


def texts() -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        items = _items(value)
        if not all(isinstance(item, str) for item in items):
            raise ValueError
        return items

    return Rule("a list of names", read, {"type": "array", "items": {"type": "string"}})


def listed(one: Rule) -> Rule:
    """A single value that stands for a list of it."""
    return Rule(one.expected, lambda value: (one.read(value),), one.schema)


def name_sets() -> Rule:
    """Names, and lists of names."""

    def read(value: object) -> tuple[Any, ...]:
        if value is None:
            return ()
        one = texts()
        return tuple(item if isinstance(item, str) else one.read(item) for item in _items(value))

    return Rule("a list of names, or of lists of names", read, {"type": "array"})


def _table_of(value: object) -> Mapping[object, object]:
    """What is written as a table; an empty one where nothing is. Raises ValueError for anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError
    return value or {}


def table(values: Rule | None = None) -> Rule:
    def read(value: object) -> dict[str, Any]:
        found = {}
        for key, item in _table_of(value).items():
            try:
                found[str(key)] = values.read(item) if values else item
            except (ValueError, TypeError, OverflowError):
                assert values is not None, "only a rule refuses"
                raise WrongEntry(str(key), f"{key}: {quoted(item)} is not {values.expected}") from None
        return found

    schema = {"type": "object", **({"additionalProperties": dict(values.schema)} if values else {})}
    return Rule("a table of names" + (f", each with {values.expected}" if values else ""), read, schema)


def entries(known: Mapping[str, Entry], others: Collection[str] = ()) -> Rule:
    """A table of known names. others: names that are allowed and not looked into."""

    def read(value: object) -> dict[str, Any]:
        found = {}
        for key, item in _table_of(value).items():
            name = str(key)
            if name not in known and name not in others:
                near = get_close_matches(name, [*known, *others], n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise WrongEntry(name, f"unknown key {quoted(name)}; {hint}")
            unset = name in known and item is None and known[name].default is None
            check = known[name].check if name in known and not unset else None
            try:
                found[name] = check.read(item) if check is not None else item
            except WrongEntry as error:
                raise WrongEntry(name, f"{name}: {error}") from None
            except (ValueError, TypeError, OverflowError) as error:
                assert check is not None, "only a rule refuses"
                reason = f" ({str(error)[:200]})" if str(error) else ""
                raise WrongEntry(name, f"{name}: got {quoted(item)}, expected {check.expected}{reason}") from None
        return found

    schema = {
        "type": ["object", "null"], "additionalProperties": False,
        "properties": {name: {"description": e.doc, **e.check.schema} for name, e in known.items()}
        | {name: {} for name in others},
    }  # fmt: skip
    return Rule(f"a table with {', '.join(known)}", read, schema, known)


def tables() -> Rule:
    def read(value: object) -> tuple[dict[str, Any], ...]:
        items = [item.to_dict() if hasattr(item, "to_dict") else item for item in _items(value)]
        if not items or not all(isinstance(item, Mapping) for item in items):
            raise ValueError
        return tuple(dict(item) for item in items)

    known = {"resource": {"type": "string"}, "ratio": {"type": "number"}, "value": {"type": "number"}}
    item = {"type": "object", "required": ["resource"], "additionalProperties": False, "properties": known}
    return Rule("a list of tables such as {resource: latency, ratio: 0.6}", read, {"type": "array", "items": item})


def optional(rule: Rule) -> Rule:
    schema = {"anyOf": [dict(rule.schema), {"type": "null"}]}
    return Rule(f"{rule.expected}, or null", lambda value: None if value is None else rule.read(value), schema)


def either(first: Rule, second: Rule) -> Rule:
    def read(value: object) -> Any:
        try:
            return first.read(value)
        except (ValueError, TypeError, OverflowError):
            return second.read(value)

    return Rule(f"{first.expected}, or {second.expected}", read, {"anyOf": [dict(first.schema), dict(second.schema)]})


def registered(registry: Registry) -> Rule:
    """A name of `registry`, or an object that it could hold."""
    return Rule(
        f"a {registry.kind}: {', '.join(registry.built_in)}, one that is registered, or the object", registry.read,
        {"type": "string", "examples": list(registry.built_in)},
    )  # fmt: skip


def checked_by(function: Callable[[object], object], expected: str) -> Rule:
    return Rule(expected, function)


def anything(expected: str) -> Rule:
    return Rule(expected, lambda value: value)


def _given(limits: Mapping[str, object]) -> dict[str, object]:
    return {name: limit for name, limit in limits.items() if limit is not None}


def plain(value: object) -> Any:
    """As JSON and YAML have it: lists for tuples, all the way down."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float) else name_of(value)
