"""A dataclass from what JSON holds: every field there, none besides, each of the type that its annotation says.

A checksum shows that a record is what somebody wrote. It does not show that this version, or fxprune at all, wrote it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def made(kind: type[T], data: object) -> T:
    """The dataclass `kind` of a JSON object. Raises ValueError that names the field that is missing or wrong."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a record of {kind.__name__} is an object, got a {type(data).__name__}")
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    known = {field.name: field for field in fields(kind)}
    foreign = sorted(data.keys() - known.keys())
    if foreign:
        raise ValueError(f"{kind.__name__} has no field {foreign[0]!r}")
    missing = [
        name
        for name, field in known.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{kind.__name__} is without its field {missing[0]!r}")
    return kind(**{name: typed(hints[name], value, f"{kind.__name__}.{name}") for name, value in data.items()})


def typed(hint: object, value: object, where: str) -> Any:
    """`value` as what `hint` says, tuples for lists. Raises ValueError that names where it stands."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in arguments:
            return None
        return typed(next(item for item in arguments if item is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        assert arguments[1:] == (...,), "records hold tuples of any length and one type"
        return tuple(typed(arguments[0], item, where) for item in value)
    if origin is list and isinstance(value, list):
        return [typed(arguments[0], item, where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: typed(arguments[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    if hint is object:
        return value
    if hint is float and type(value) is int:
        return value  # JSON has one kind of number, and counts of MACs are whole
    if isinstance(hint, type) and hint.__module__.partition(".")[0] == "fxprune":
        return made(hint, value)
    if type(value) is not (origin or hint):
        raise ValueError(f"{where} is {str(value)[:60]!r}, expected {getattr(hint, '__name__', hint)}")
    return value
