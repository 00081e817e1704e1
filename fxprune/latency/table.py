"""Latency tables: what was measured, by the keys of units, in one JSON file a setting.

A file holds a format version, the setting (backend, its version, threads, device) and for each key its samples, under a
checksum. It is written as a whole to a temporary file and renamed, so that a reader never finds half of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from fxprune.errors import JournalError
from fxprune.io.storage import write_bytes
from fxprune.latency.device import Setting
from fxprune.latency.errors import CorruptedTable, ForeignTable, TableError, TableVersionError
from fxprune.latency.timing import Timing
from passes.arguments import file_name
from passes.documents.strict_json import parse

FORMAT, VERSION = "fxprune latency table", 1


@dataclass(frozen=True)
class Sample:
    """One measurement of a unit at the given widths (the values of its coordinates)."""

    widths: tuple[int, ...]
    timing: Timing

    def to_list(self) -> list[Any]:
        t = self.timing
        return [list(self.widths), t.ms, t.low, t.high, t.repeats]

    @staticmethod
    def of(widths: Sequence[int], timing: Timing) -> Sample:
        """A sample as it is stored: to the picosecond."""
        t = timing
        return Sample(tuple(widths), Timing(round(t.ms, 9), round(t.low, 9), round(t.high, 9), t.repeats))

    @staticmethod
    def from_list(data: Sequence[Any]) -> Sample:
        widths, ms, low, high, repeats = data
        return Sample(tuple(int(w) for w in widths), Timing(float(ms), float(low), float(high), int(repeats)))


@dataclass(frozen=True)
class Span:
    """A box of widths that was sampled until predictions in it were good to `tolerance`.

    axes: (least, most, grid) for each coordinate, grid being the distance of neighbouring widths. samples: how many the
    unit had when that was done.
    """

    axes: tuple[tuple[int, int, int], ...]
    tolerance: float
    samples: int = 0

    def covers(self, other: Span) -> bool:
        """Whether everything that `other` asks for has been done here."""
        return self.tolerance <= other.tolerance + 1e-12 and all(
            mine[0] <= theirs[0] and theirs[1] <= mine[1] and theirs[2] % mine[2] == 0
            for mine, theirs in zip(self.axes, other.axes, strict=True)
        )

    def to_list(self) -> list[Any]:
        return [[list(axis) for axis in self.axes], self.tolerance, self.samples]

    @staticmethod
    def from_list(data: Sequence[Any]) -> Span:
        axes, tolerance, samples = data
        return Span(tuple((int(a), int(b), int(c)) for a, b, c in axes), float(tolerance), int(samples))


@dataclass
class Entry:
    """All that is known of one unit."""

    samples: list[Sample] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def covers(self, span: Span) -> bool:
        return any(known.covers(span) for known in self.spans)

    @property
    def unfinished(self) -> int:
        """How many samples an interrupted build has left."""
        return len(self.samples) - max((span.samples for span in self.spans), default=0)


@dataclass
class LatencyTable:
    """Samples by unit key, all of one setting."""

    setting: Setting
    entries: dict[str, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def samples(self) -> int:
        return sum(len(entry.samples) for entry in self.entries.values())

    def entry(self, key: str) -> Entry:
        """The entry of a key, made where there is none."""
        return self.entries.setdefault(key, Entry())

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Both tables in one; a sample or span that both hold counts once.

        Raises ForeignTable where the settings differ.
        """
        require_setting(other.setting, self.setting, "the table to merge")
        result = LatencyTable(self.setting)
        for key in (*self.entries, *(k for k in other.entries if k not in self.entries)):
            mine, theirs = self.entries.get(key, Entry()), other.entries.get(key, Entry())
            result.entries[key] = Entry(
                list(dict.fromkeys([*mine.samples, *theirs.samples])), list(dict.fromkeys([*mine.spans, *theirs.spans]))
            )
        return result

    def copy(self) -> LatencyTable:
        return LatencyTable(self.setting, {k: Entry(list(e.samples), list(e.spans)) for k, e in self.entries.items()})

    def save(self, path: str | Path) -> None:
        """Write the file as a whole: a temporary file beside it, fsync, rename."""
        path = file_name(path, "LatencyTable.save", error=TableError)
        content = {
            "setting": self.setting.to_dict(),
            "entries": {
                key: {"samples": [s.to_list() for s in entry.samples], "spans": [s.to_list() for s in entry.spans]}
                for key, entry in sorted(self.entries.items())
            },
        }
        data = {"format": FORMAT, "version": VERSION, "checksum": _checksum(content), **content}
        try:
            write_bytes(path, _as_text(data).encode())
        except JournalError as error:  # the words for a full disk, a folder that is read-only, ...
            raise TableError(str(error)) from error

    @staticmethod
    def load(path: str | Path, setting: Setting | None = None) -> LatencyTable:
        """Read a table; with `setting`, only one that was measured under it.

        Raises CorruptedTable, TableVersionError or ForeignTable, each naming the file and the difference.
        """
        path = file_name(path, "LatencyTable.load", error=TableError)
        try:
            text = path.read_bytes()
            data = parse(text)
        except (OSError, ValueError) as error:
            raise CorruptedTable(f"{path}: the latency table cannot be read: {error}; build it anew.") from error
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise CorruptedTable(f"{path}: this is no latency table of fxprune (no format {FORMAT!r}); build one.")
        if data.get("version") != VERSION:
            raise TableVersionError(
                f"{path}: the table has format version {data.get('version')!r}, this fxprune reads {VERSION}; "
                "build it anew."
            )
        content: dict[str, Any] = {"setting": data.get("setting"), "entries": data.get("entries")}
        known = data.get("checksum") == _checksum(content) and isinstance(content["entries"], Mapping)
        # The text as well as what it says: 1e-05 and 1E-05 are one bit apart.
        if not known or _as_text({**data, **content}).encode() != text:
            raise CorruptedTable(
                f"{path}: the table's content does not match its checksum; it was damaged, build it anew."
            )
        try:
            table = LatencyTable(
                Setting.from_dict(content["setting"]),
                {
                    key: Entry([Sample.from_list(s) for s in e["samples"]], [Span.from_list(s) for s in e["spans"]])
                    for key, e in content["entries"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptedTable(
                f"{path}: the table's content has not the form of version {VERSION}: {error!r}."
            ) from error
        if setting is not None:
            require_setting(table.setting, setting, str(path))
        return table


def require_setting(found: Setting, wanted: Setting, where: str) -> None:
    """Refuse a table of another setting, naming what differs."""
    for what, theirs, ours in (
        ("backend", found.backend, wanted.backend),
        ("device", found.device_name, wanted.device_name),
        ("number of threads", found.threads, wanted.threads),
    ):
        if theirs != ours:
            raise ForeignTable(
                f"{where}: measured with {what} {theirs!r}, and {ours!r} is asked for; its numbers do not hold here. "
                "Build a table for this one, or say that it was measured elsewhere and is to be taken as it is "
                "(latency: {table: FILE, foreign: true})."
            )
    if found.version != wanted.version:
        raise TableVersionError(
            f"{where}: measured with {found.backend} {found.version}, and {wanted.version} is installed; build it anew."
        )


def merge_files(paths: Iterable[str | Path]) -> LatencyTable:
    """One table of several files of the same setting."""
    tables = [LatencyTable.load(path) for path in paths]
    if not tables:
        raise TableError("no table to merge; name at least one file")
    return reduce(LatencyTable.merged, tables)


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _as_text(data: Mapping[str, Any]) -> str:
    """JSON with a line for each entry, so that tables can be compared by eye and by diff."""
    head = {k: v for k, v in data.items() if k != "entries"}
    lines = [f"{json.dumps(key)}: {json.dumps(entry, separators=(',', ':'))}" for key, entry in data["entries"].items()]
    body = ",\n".join(lines)
    return json.dumps(head, indent=1)[:-2] + ',\n "entries": {\n' + body + "\n }\n}\n"
