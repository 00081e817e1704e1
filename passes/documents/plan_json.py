"""A plan as JSON text with a checksum over it: written one group a line, read back with every fault named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from passes.arguments import quoted
from passes.documents.strict_json import parse
from passes.errors import PlanError

FORMAT = 3  # with removed blocks; 2, still written and read, has none, and 1, still read, had no checksum
_MOST_UNITS = 2**31
_MOST_ELEMENTS = 2**34  # of an example input, which a reader makes zeros of
_SEALED = re.compile(r'(.*"sha256": ")([0-9a-f]{64})"\}\s*', re.DOTALL)
_GROUP_KEYS = {"size", "keep", "outer", "order"}
_LEAVES = {"tensor": {"tensor", "dtype"}, "dict": {"dict"}, "list": {"list"}, "tuple": {"tuple"}, "value": {"value"}}


def written(
    fingerprint: str, inputs: Sequence[object], groups: Mapping[str, Mapping[str, object]], blocks: Mapping[str, object]
) -> str:
    """The text of a plan: sorted keys, one group a line, and at the end the SHA-256 of all that stands before it."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(groups[name])}" for name in sorted(groups))
    values = {"format": FORMAT if blocks else 2, "fingerprint": fingerprint, "inputs": list(inputs), **blocks}
    head = json.dumps(values, sort_keys=True)
    body = head[:-1] + ', "groups": {\n' + lines + '\n},\n"sha256": "'
    return f'{body}{hashlib.sha256(body.encode()).hexdigest()}"}}\n'


def read(text: str) -> dict[str, Any]:
    """What `written` wrote, checked: fingerprint, inputs, removed_blocks, gone, and groups, each with size, keep and
    perhaps outer and order.

    Raises PlanError that says what is missing, wrong or altered.
    """
    if not isinstance(text, str):
        raise PlanError(f"a plan is read from JSON text, got a {type(text).__name__}; pass Path(...).read_text()")
    try:
        data = parse(text)
    except ValueError as error:
        raise PlanError(f"this is no plan of fxprune, or a damaged one: {error}") from None
    if not isinstance(data, dict):
        raise PlanError(f"this is no plan of fxprune: expected a JSON object, got a {type(data).__name__}")
    number = _of(data, "format", int, "the plan")
    if not 1 <= number <= FORMAT:
        raise PlanError(f"the plan has format {number}, this version reads formats 1 to {FORMAT}")
    expected = {"format", "fingerprint", "inputs", "groups"}
    expected |= ({"sha256"} if number > 1 else set()) | ({"removed_blocks", "gone"} if number > 2 else set())
    if data.keys() != expected:
        _refuse_keys(data, expected)
    none: dict[str, Any] = {"removed_blocks": [], "gone": {}}  # in formats that have no blocks
    contents = {**none, **{key: value for key, value in data.items() if key not in ("format", "sha256")}}
    check_contents(contents)
    if number > 1:
        _check_seal(text)
    return contents


def check_contents(contents: Mapping[str, object]) -> None:
    """Raise PlanError unless this is what a plan holds: what `read` gives, be it from a text or from a `Plan`."""
    _of(contents, "fingerprint", str, "the plan")
    for name, group in _of(contents, "groups", dict, "the plan").items():
        _check_group(name, group)
    for position, item in enumerate(_of(contents, "inputs", list, "the plan")):
        _check_input(item, f"input {position}")
    removed = _of(contents, "removed_blocks", list, "the plan")
    if any(not isinstance(name, str) for name in removed) or len(set(map(str, removed))) < len(removed):
        raise PlanError("the plan: removed_blocks holds names, each once")
    gone = _of(contents, "gone", dict, "the plan")
    if any(type(width) is not int or width < 0 for width in gone.values()):
        raise PlanError("the plan: gone holds a width of at least 0 for each name")


def _check_seal(text: str) -> None:
    found = _SEALED.fullmatch(text)
    if found is None or hashlib.sha256(found.group(1).encode()).hexdigest() != found.group(2):
        raise PlanError(
            "the plan was altered or damaged after it was written: its checksum does not fit its text; "
            "take it from where it was written, or make a new one with coupling.plan(...).to_json()"
        )


def _check_group(name: str, group: object) -> None:
    where = f"group {name!r}"
    if not isinstance(name, str):
        raise PlanError(f"this is no plan of fxprune: {where}: the name of a group is a text")
    if not isinstance(group, dict):
        raise PlanError(f"this is no plan of fxprune: {where} is a {type(group).__name__}, expected an object")
    if not group.keys() <= _GROUP_KEYS or ("order" in group) != ("outer" in group):
        _refuse_keys(group, {"size", "keep"}, where)
    size = _of(group, "size", int, where)
    if not 1 <= size <= _MOST_UNITS:
        raise PlanError(f"{where}: a size of {size} is no number of units")
    keep = _units(_of(group, "keep", list, where), where)
    if not keep or any(a >= b for a, b in zip(keep, keep[1:], strict=False)) or keep[0] < 0 or keep[-1] >= size:
        raise PlanError(f"{where}: kept units are ascending, each once, in 0..{size - 1}, and at least one")
    for row in _of(group, "order", list, where) if "order" in group else []:
        if not isinstance(row, list) or len(row) != size or sorted(_units(row, where)) != list(range(size)):
            raise PlanError(f"{where}: each row of its order holds all of 0..{size - 1} once")
    if "outer" in group:
        _of(group, "outer", str, where)


def _units(values: list[Any], where: str) -> list[int]:
    wrong = next((value for value in values if type(value) is not int), None)
    if wrong is not None:
        raise PlanError(f"{where}: units are integers, got {quoted(wrong)}")
    return values


def _check_input(item: Any, where: str) -> None:
    kind = next((kind for kind in _LEAVES if isinstance(item, dict) and kind in item), None)
    if kind is None or item.keys() != _LEAVES[kind]:
        raise PlanError(f"{where}: expected one of {', '.join(_LEAVES)}, got {quoted(item)}")
    inner = item[kind]
    if kind == "tensor":
        _check_tensor(item, where)
    elif kind == "dict":
        for name, value in _of(item, kind, dict, where).items():
            _check_input(value, f"{where}[{name!r}]")
    elif kind in ("list", "tuple"):
        for position, value in enumerate(_of(item, kind, list, where)):
            _check_input(value, f"{where}[{position}]")
    elif isinstance(inner, list | dict):
        raise PlanError(f"{where}: a value is a number, a text, true, false or null, got {quoted(inner)}")


def _check_tensor(item: dict[str, object], where: str) -> None:
    import torch

    elements = 1
    for size in _of(item, "tensor", list, where):
        if type(size) is not int or size < 0:
            raise PlanError(f"{where}: a shape holds sizes of at least 0, got {quoted(size)}")
        elements *= max(size, 1)
    if elements > _MOST_ELEMENTS:
        raise PlanError(f"{where}: {elements:,} elements are more than any example input has")
    dtype = _of(item, "dtype", str, where)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise PlanError(f"{where}: torch has no dtype {dtype[:40]!r}")


def _of(table: Mapping[str, object], key: str, kind: type, where: str) -> Any:
    if key not in table:
        raise PlanError(f"this is no plan of fxprune: {where} has no {key!r}")
    value = table[key]
    if type(value) is not kind:
        raise PlanError(f"this is no plan of fxprune: {key!r} of {where} is {quoted(value)}, expected {_NAMES[kind]}")
    return value


_NAMES = {int: "an integer", str: "a text", list: "a list", dict: "an object"}


def _refuse_keys(table: Mapping[str, object], expected: set[str], where: str = "the plan") -> None:
    missing, foreign = sorted(expected - table.keys()), sorted(table.keys() - expected)
    detail = f"{where} has no {missing[0]!r}" if missing else f"{where} has an unknown entry {foreign[0][:40]!r}"
    raise PlanError(f"this is no plan of fxprune: {detail}")
