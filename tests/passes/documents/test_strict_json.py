"""JSON from anyone: what is read is what JSON says, and anything else is a ValueError in words, in linear time."""

from __future__ import annotations

import json

import pytest

from passes.documents.strict_json import parse


@pytest.mark.parametrize(
    "value", [None, True, 0, -7, 2**63, 1e-05, -1.5e300, "", 'ä\u2028\\"[{', [], {}, {"a": [1, {"b": [[]]}]}, ["x"]]
)
def test_what_json_says_is_read(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        assert parse(text) == value and parse(text.encode()) == value


def test_nesting_up_to_the_limit() -> None:
    assert parse("[" * 64 + "]" * 64)
    assert parse(json.dumps("[" * 1000)) == "[" * 1000, "brackets in a text are no nesting"


def test_infinity_where_it_was_meant() -> None:
    assert parse("[NaN, -Infinity]", finite=False)[1] == float("-inf")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[1,]", "Expecting value|Illegal trailing comma"),
        ("{} {}", "Extra data"),
        ("[" * 10**6, "nested more than 64 deep"),
        ('{"a":' * 10**5, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('"' + '\\"' * 10**6, "Unterminated string"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the name 'c' stands twice"),
        ("1" * 10**6, "1,000,000 digits"),
        ("0." + "1" * 10**6, "1,000,002 digits"),
        ("1e999", "larger than any float64"),
        ("NaN", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ("\ud800", "it was not read as UTF-8"),
        (b"\xff\xfe", "utf-8"),
        ("\x00", "Expecting value"),
        (None, "expected text, got a NoneType"),
    ],
)
def test_what_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)
