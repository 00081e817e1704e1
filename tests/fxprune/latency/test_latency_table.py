"""Tables: kept, merged, refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fxprune.latency import CorruptedTable, ForeignTable, LatencyTable, Setting, TableVersionError, Timing, merge_files
from fxprune.latency.device import cpu
from fxprune.latency.errors import TableError
from fxprune.latency.table import Entry, Sample, Span

HERE = Setting("onnxruntime", "1.2", 1, {"processor": "X", "architecture": "y", "vectors": "z"})


def table(key: str = "convolution(1,a,8,8)", ms: float = 0.5) -> LatencyTable:
    entry = Entry([Sample((8, 16), Timing(ms, ms * 0.9, ms * 1.1, 9))], [Span(((8, 64, 8), (16, 16, 1)), 0.02)])
    return LatencyTable(HERE, {key: entry})


def test_round_trip(tmp_path: Path) -> None:
    table().save(tmp_path / "deep" / "t.json")
    assert LatencyTable.load(tmp_path / "deep" / "t.json", HERE) == table()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["t.json"]


def test_a_file_names_no_machine(tmp_path: Path) -> None:
    LatencyTable(Setting("eager", "2", 1, cpu())).save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    assert os.uname().nodename not in text and str(Path.home()) not in text


@pytest.mark.parametrize("damage", ["truncate", "number", "text", "binary", "list"])
def test_corrupted_files_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.json"
    table().save(path)
    text = path.read_text()
    if damage == "truncate":
        path.write_text(text[: len(text) // 2])
    elif damage == "number":
        assert "0.55" in text
        path.write_text(text.replace("0.55", "0.54"))
    elif damage == "text":
        path.write_text("[1, 2]")
    elif damage == "binary":
        path.write_bytes(bytes(range(256)))
    else:
        path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(CorruptedTable, match="damaged.json"):
        LatencyTable.load(path)


def test_no_single_bit_of_a_table_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table(ms=1e-05).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole) * 8, 5):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(TableError, match="table.json"):
            LatencyTable.load(path)


def test_others_may_read_a_table(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        table().save(tmp_path / "table.json")
    finally:
        os.umask(before)
    assert (tmp_path / "table.json").stat().st_mode & 0o777 == 0o644


def test_a_missing_form_is_corruption_even_under_a_good_checksum(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    good = table()
    good.entries["k"] = Entry()
    good.save(path)
    from fxprune.latency.table import _checksum

    data = json.loads(path.read_text())
    data["entries"]["k"] = {"samples": [[1, 2]], "spans": []}
    data["checksum"] = _checksum({"setting": data["setting"], "entries": data["entries"]})
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptedTable, match="odd.json"):
        LatencyTable.load(path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    table().save(path)
    data = json.loads(path.read_text())
    data["version"] = 0
    path.write_text(json.dumps(data))
    with pytest.raises(TableVersionError, match=r"old.json.*version 0.*reads 1"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        (replace(HERE, backend="eager"), ForeignTable, "backend"),
        (replace(HERE, device={"processor": "Another chip"}), ForeignTable, "Another chip"),
        (replace(HERE, threads=4), ForeignTable, "threads"),
        (replace(HERE, version="1.1"), TableVersionError, "1.1"),
    ],
)
def test_foreign_tables_are_refused(tmp_path: Path, other: Setting, error: type[TableError], words: str) -> None:
    path = tmp_path / "theirs.json"
    LatencyTable(other).save(path)
    with pytest.raises(error, match="theirs.json") as caught:
        LatencyTable.load(path, HERE)
    assert words in str(caught.value)
    assert LatencyTable.load(path).setting == other  # to look at it is allowed
    with pytest.raises(error):
        table().merged(LatencyTable(other))


def test_merging_counts_nothing_twice(tmp_path: Path) -> None:
    first, second = table(), table(ms=0.7)
    second.entries["linear"] = Entry([Sample((4,), Timing(1, 1, 1, 1))])
    both = first.merged(second).merged(first)
    assert len(both) == 2 and len(both.entries["convolution(1,a,8,8)"].samples) == 2
    first.save(tmp_path / "a.json")
    second.save(tmp_path / "b.json")
    assert merge_files([tmp_path / "a.json", tmp_path / "b.json"]) == first.merged(second)
    with pytest.raises(TableError, match="at least one"):
        merge_files([])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(TableError, match="t.json: it cannot be read or written: disk full"):
        table(ms=9).save(path)
    assert LatencyTable.load(path) == table()
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


def test_spans() -> None:
    wide = Span(((8, 64, 8),), 0.02)
    assert wide.covers(Span(((16, 32, 16),), 0.05)) and wide.covers(wide)
    assert not wide.covers(Span(((4, 64, 8),), 0.02))
    assert not wide.covers(Span(((8, 64, 4),), 0.02))
    assert not wide.covers(Span(((8, 64, 8),), 0.01))
