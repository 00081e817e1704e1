"""What a configuration value may be: small rules, each with the words that an error says; and YAML with line
numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fxprune.errors import ConfigError


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
            except (ValueError, TypeError):
                assert values is not None, "only a rule refuses"
                raise WrongEntry(str(key), f"{key}: {item!r} is not {values.expected}") from None
        return found

    return Rule("a table of names" + (f", each with {values.expected}" if values else ""), read)


def tables() -> Rule:
    def read(value: Any) -> tuple[dict[str, Any], ...]:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError
        items = [item if isinstance(item, Mapping) else item.to_dict() for item in value]
        if not items:
            raise ValueError
        return tuple(dict(item) for item in items)

    return Rule("a list of tables such as {resource: latency, ratio: 0.6}", read)


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda value: None if value is None else rule.read(value))


def either(first: Rule, second: Rule) -> Rule:
    def read(value: Any) -> Any:
        try:
            return first.read(value)
        except (ValueError, TypeError):
            return second.read(value)

    return Rule(f"{first.expected}, or {second.expected}", read)


def checked_by(function: Callable[[Any], Any], expected: str) -> Rule:
    return Rule(expected, function)


def plain(value: Any) -> Any:
    """As JSON and YAML have it: lists for tuples, all the way down."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


Place = tuple[str, ...]
"""A key of a file, or a key and the name of an entry in its table."""


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """The top-level keys of a YAML file, and the line on which each of them and each entry of their tables stands.

    Names in tables are taken as they are written: a layer 1.10 is not the number 1.1.
    """
    import yaml

    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error}.") from error
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
        tables = _tables_of(node, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    if values is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected keys with values, such as `budget_ratio: 0.5`; got a {type(values).__name__}."
        )
    lines: dict[Place, int] = {}
    for place, line in _places(node):
        if place in lines:
            raise ConfigError(f"{path}, line {line}: {place[-1]} stands here again, after line {lines[place]}.")
        lines[place] = line
    return {**values, **tables}, lines


def _places(node: Any) -> Iterator[tuple[Place, int]]:
    for key, value in node.value:
        yield (key.value,), key.start_mark.line + 1
        for entry in _entries(value):
            yield (key.value, entry.value), entry.start_mark.line + 1


def _entries(node: Any) -> list[Any]:
    """The nodes of a table's names; none where it is no table, or merged from another (`<<`)."""
    import yaml

    names = [name for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    plain_names = all(isinstance(name, yaml.ScalarNode) and name.value != "<<" for name in names)
    return names if plain_names else []


def _tables_of(node: Any, loader: Any) -> dict[str, dict[str, Any]]:
    """The tables of a file by their names as they are written."""
    import yaml

    found = {}
    for key, table in node.value if isinstance(node, yaml.MappingNode) else ():
        if _entries(table):
            found[key.value] = {name.value: loader.construct_document(value) for name, value in table.value}
    return found


def write_yaml(entries: Mapping[str, tuple[Any, str]]) -> str:
    """`# meaning`, then `key: value`, for each entry."""
    import yaml

    parts = []
    for key, (value, doc) in entries.items():
        parts.append(
            f"# {doc}\n" + yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=False, allow_unicode=True)
        )
    return "".join(parts)
