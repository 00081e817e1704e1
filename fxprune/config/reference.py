"""The keys of a configuration described from their rules: for a page, a commented file, an editor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from fxprune.config.keys import NetAdaptConfig
from fxprune.config.rules import Entry, Rule, plain
from fxprune.io.seal import UNSEALED


@dataclass(frozen=True)
class Described:
    """A key: its name, the table that it stands in ("" for none), meaning, default as YAML has it, range in words.

    holds: it is a table, whose keys come after it.
    """

    name: str
    table: str
    meaning: str
    default: str
    expected: str
    holds: bool = False


def described_keys() -> Iterator[Described]:
    """Every key in its order; those of a table after it.

    >>> next(described_keys()).name
    'budget'
    """
    defaults = NetAdaptConfig()
    for field in fields(NetAdaptConfig):
        check: Rule = field.metadata["check"]
        default = _value(getattr(defaults, field.name))
        yield Described(field.name, "", field.metadata["doc"], default, check.expected, bool(check.entries))
        yield from _inside(check.entries, field.name)


def _inside(entries: Mapping[str, Entry], table: str) -> Iterator[Described]:
    for name, entry in entries.items():
        known = entry.check.entries
        yield Described(name, table, entry.doc, _value(entry.default), entry.check.expected, bool(known))
        yield from _inside(entry.check.entries, f"{table}.{name}")


def commented_yaml(values: Mapping[str, object]) -> str:
    """A configuration in which `values` stand, and every other key as a comment with its default.

    Each key says its meaning and its range above it. The first line names the JSON Schema for editors.
    """
    lines = [f"# yaml-language-server: $schema={SCHEMA_FILE}"]
    lines += ["# `#KEY: VALUE` is the default; take the # away to change it."]
    for key in described_keys():
        indent = "  " * (key.table.count(".") + bool(key.table))
        lines += ["", *_comment(key, indent)] if not key.table else _comment(key, indent)
        given = not key.table and key.name in values
        shown = _value(values[key.name]) if given else "" if key.holds else key.default
        lines.append(f"{'' if given else '#'}{indent}{key.name}: {shown}".rstrip())
    return "\n".join(lines) + "\n"


SCHEMA_FILE = "fxprune-schema.json"


def json_schema() -> dict[str, object]:
    """A JSON Schema (draft 2020-12) of configurations: editors complete and check keys with it.

    Its comment has room for the checksum that tells whether a file of it was edited.
    """
    defaults = NetAdaptConfig()
    properties = {
        field.name: {
            "description": field.metadata["doc"],
            "default": plain(getattr(defaults, field.name)),
            **field.metadata["check"].schema,
        }
        for field in fields(NetAdaptConfig)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": UNSEALED,
        "title": "fxprune configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _comment(key: Described, indent: str) -> list[str]:
    import textwrap

    text = f"{key.meaning}. Range: {key.expected}."
    head = f"# {indent}"
    return textwrap.wrap(text, 110, initial_indent=head, subsequent_indent=head, break_long_words=False)


def _value(value: object) -> str:
    """As YAML has it, on one line."""
    return json.dumps(plain(value)) if not isinstance(value, str) else _text(value)


def _text(value: str) -> str:
    import yaml

    return yaml.safe_dump(value, default_style=None, width=10_000).removesuffix("\n...\n").rstrip("\n")
