"""JSON as the packages read it: bounded in depth and in the size of its numbers, each name once, no NaN, no infinity.

`json.loads` takes more than JSON says (NaN, the last of two equal names) and fails in its own ways on what is too deep
or too long. Files that a program reads back without a person looking are better refused than understood in part.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

MOST_DEPTH = 64
MOST_DIGITS = 64  # of one number; an index, a seed or a float64 needs fewer
# A string that does not end is taken to the end of the text, or each of its quotes would be tried anew.
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse(text: str | bytes, finite: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError that says what is wrong, for any text and in linear time.

    finite=False takes NaN and Infinity as Python writes them, for files whose checksum says that they were meant.

    >>> parse('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the name 'a' stands twice in one object
    """
    if isinstance(text, bytes | bytearray):
        text = bytes(text).decode("utf-8")  # UnicodeDecodeError is a ValueError
    if not isinstance(text, str):
        raise ValueError(f"expected text, got a {type(text).__name__}")
    if _SURROGATE.search(text):
        raise ValueError("the text holds half of a surrogate pair: it was not read as UTF-8")
    _check_depth(text)
    value = json.loads(
        text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float,
        parse_constant=_constant if finite else float,
    )  # fmt: skip
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("a text holds half of a surrogate pair, which is no character")
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for found in _TOKENS.finditer(text):
        token = found.group()
        if token in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ValueError(f"lists and objects are nested more than {MOST_DEPTH} deep")
        elif token in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return found


def _integer(digits: str) -> int:
    _check_digits(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_digits(digits)
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits} is larger than any float64")
    return value


def _check_digits(digits: str) -> None:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits; at most {MOST_DIGITS} are read")


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not a number in JSON")
