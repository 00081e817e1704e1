"""YAML as fxprune reads it: bounded in size, depth and what aliases stand for, each name once, lines known.

A YAML file of a few hundred bytes may stand for billions of values (aliases of aliases), for one that holds itself, or
for an integer that takes minutes to read. None of that is in a configuration, so it is refused by its line, before
anything is built of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import ConfigError

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 1_000_000
MOST_DEPTH = 32
MOST_VALUES = 20_000  # with each alias counted as all that it stands for
MOST_DIGITS = 64  # of a number

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

Place = tuple[str, ...]
"""A key of a file, or a key and the name of an entry in its table."""


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """The top-level keys of a YAML file, and the line on which each of them and each entry of their tables stands.

    Names in tables are taken as they are written: a layer 1.10 is not the number 1.1. Raises ConfigError that names the
    file and the line.
    """
    import yaml

    content = _content(path)
    try:
        _check_events(content)
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        _check_node(node)
        values = None if node is None else loader.construct_document(node)
        tables = _tables_of(node, loader)
    except _Refused as error:
        raise ConfigError(f"{path}, line {error.line}: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        # What PyYAML's constructors raise on a date that does not exist, on !!float x, ...
        raise ConfigError(f"{path}: a value cannot be read: {error}.") from error
    if values is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected keys with values, such as `budget_ratio: 0.5`; got a {type(values).__name__}."
        )
    lines = dict(_places(node))
    return {**values, **tables}, lines


def write_yaml(entries: Mapping[str, tuple[object, str]]) -> str:
    """`# meaning`, then `key: value`, for each entry."""
    import yaml

    parts = []
    for key, (value, doc) in entries.items():
        parts.append(
            f"# {doc}\n" + yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=False, allow_unicode=True)
        )
    return "".join(parts)


class _Refused(Exception):
    def __init__(self, text: str, mark: Any):
        super().__init__(text)
        self.line = mark.line + 1


def _content(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ConfigError(f"{path}: the configuration cannot be read: there is no such file.")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{path}: the configuration has more than {MOST_BYTES:,} bytes.")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error}.") from error


@dataclass
class _Open:
    """A list or table that is being read: the name that aliases call it by, and how many values it has so far."""

    anchor: str | None = None
    size: int = 1


@dataclass
class _Sizes:
    """How many values each anchor stands for, and the lists and tables around the current one."""

    known: dict[str, int] = field(default_factory=dict)
    around: list[_Open] = field(default_factory=lambda: [_Open()])

    def add(self, size: int, anchor: str | None, mark: object) -> None:
        if anchor is not None:
            self.known[anchor] = size
        self.around[-1].size += size
        if self.around[-1].size > MOST_VALUES:
            raise _Refused(f"the file stands for more than {MOST_VALUES:,} values, aliases written out", mark)


def _check_events(content: str) -> None:
    """Refuse what is too deep or too much, on the stream of events: nothing is built yet, and nothing recurses."""
    import yaml

    sizes = _Sizes()
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(part.anchor == event.anchor for part in sizes.around):
                raise _Refused(f"the alias *{event.anchor} stands inside of what it stands for", event.start_mark)
            sizes.add(sizes.known.get(str(event.anchor), 1), None, event.start_mark)
        elif isinstance(event, yaml.ScalarEvent):
            sizes.add(1, event.anchor, event.start_mark)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(sizes.around) > MOST_DEPTH:
                raise _Refused(f"lists and tables are nested more than {MOST_DEPTH} deep", event.start_mark)
            sizes.around.append(_Open(event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            part = sizes.around.pop()
            sizes.add(part.size, part.anchor, event.start_mark)


def _check_node(node: yaml.Node | None) -> None:
    """Refuse names that stand twice in one table, and numbers that are none; each node once."""
    import yaml

    seen: set[int] = set()
    left = [node] if node is not None else []
    while left:
        here = left.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, yaml.MappingNode):
            _check_names(here)
            left += [part for pair in here.value for part in pair]
        elif isinstance(here, yaml.SequenceNode):
            left += here.value
        elif here.tag in _NUMBERS and len(here.value) > MOST_DIGITS:
            raise _Refused(f"a number has {len(here.value):,} digits; at most {MOST_DIGITS} are read", here.start_mark)
        elif here.tag in _NUMBERS and not math.isfinite(_float(here.value)):
            raise _Refused(f"{here.value} is no finite number", here.start_mark)


def _check_names(node: yaml.MappingNode) -> None:
    import yaml

    lines: dict[str, int] = {}
    for name, _ in node.value:
        if isinstance(name, yaml.ScalarNode):
            if name.value in lines:
                raise _Refused(f"{name.value[:80]} stands here again, after line {lines[name.value]}", name.start_mark)
            lines[name.value] = name.start_mark.line + 1


def _float(text: str) -> float:
    try:
        return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
    except ValueError:
        return 0.0  # 1:30.5 and other forms of YAML's own, which are finite


def _places(node: yaml.MappingNode) -> Iterator[tuple[Place, int]]:
    for key, value in node.value:
        yield (str(key.value),), key.start_mark.line + 1
        for entry in _entries(value):
            yield (str(key.value), entry.value), entry.start_mark.line + 1


def _entries(node: object) -> list[yaml.ScalarNode]:
    """The nodes of a table's names; none where it is no table, or merged from another (`<<`)."""
    import yaml

    names = [name for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    plain_names = all(isinstance(name, yaml.ScalarNode) and name.value != "<<" for name in names)
    return names if plain_names else []


def _tables_of(node: object, loader: yaml.SafeLoader) -> dict[str, dict[str, object]]:
    """The tables of a file by their names as they are written."""
    import yaml

    found = {}
    for key, table in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and _entries(table):
            found[key.value] = {name.value: loader.construct_document(value) for name, value in table.value}
    return found
