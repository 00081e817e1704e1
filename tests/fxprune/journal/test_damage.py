"""Damaged and foreign records: named, never used, and mended by the search that goes on."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from journaled_search import assert_same, files, run

from fxprune import NetAdaptResult
from fxprune.errors import FxpruneError, JournalError
from fxprune.io import storage
from fxprune.journal.read_run import read_run


def _damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damage_alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = len(data) * 2 // 3
    data[place] = ord("7") if data[place] != ord("7") else ord("8")
    path.write_bytes(bytes(data))


def _damage_empty(path: Path) -> None:
    path.write_bytes(b"")


NAMES = [
    "run.json", "baseline.json", "result.json",
    "round-0001/round.json", "round-0001/plan.json", "round-0001/weights.safetensors",
    "round-0002/weights.safetensors", "round-0002/candidate-001.json", "round-0003/round.json",
    "round-0003/weights.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in NAMES for damage in (_damage_truncate, _damage_alter)]
    + [(name, damage) for name in ("run.json", NAMES[-1]) for damage in (_damage_empty, Path.unlink)],
)
def test_damage_is_named_and_mended(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    damage(folder / name)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = run(folder)
    assert_same(again, whole[0])
    if damage is not Path.unlink and name != "result.json":  # which is written, not read
        assert str(folder / name) in caplog.text
    assert set(files(whole[1])) == set(files(folder))
    caplog.clear()
    run(folder)
    said = [r for r in caplog.records if r.name == "fxprune.journal.folder" and r.levelno >= logging.WARNING]
    assert not said, "all is mended"


def test_damaged_candidates_of_an_unfinished_round_are_trained_again(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    for name in ("round.json", "weights.safetensors"):
        (folder / "round-0002" / name).unlink()
    records = sorted((folder / "round-0002").glob("candidate-*.json"))
    _damage_alter(records[0])
    again = run(folder)
    assert_same(again, whole[0])
    assert str(records[0]) in caplog.text and "the weights of the winner are missing" in caplog.text


def test_damaged_weights_cannot_be_restored_silently(whole: tuple[NetAdaptResult, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    found = read_run(folder)
    (folder / "round-0003" / "round.json").unlink()
    partial = read_run(folder)
    assert len(partial.rounds) == 2 and [c.score for c in partial.unfinished] == [
        c.score for c in found.rounds[2].candidates if c.trained
    ]
    _damage_alter(folder / "round-0002" / "weights.safetensors")
    with pytest.raises(JournalError, match="weights.safetensors: the file was truncated or altered"):
        found.journal.weights(2)


RECORDS = ["run.json", "baseline.json", "round-0001/round.json", "round-0001/candidate-000.json"]


@pytest.mark.parametrize("name", RECORDS)
def test_no_single_bit_of_a_record_may_be_lost(whole: tuple[NetAdaptResult, Path], name: str) -> None:
    """Also where the content would be the same: 1e-05 and 1E-05 are one bit apart."""
    path = whole[1] / name
    text, random = path.read_bytes(), np.random.default_rng(0)
    try:
        for place in random.integers(len(text) * 8, size=300):
            path.write_bytes(flipped(text, int(place)))
            with pytest.raises(storage.Damaged, match=re.escape(str(path))):
                storage.read_json(path)
    finally:
        path.write_bytes(text)


def test_a_flipped_bit_in_any_file_of_a_finished_round_is_named(whole: tuple[NetAdaptResult, Path]) -> None:
    """Also in those that repeat what the round's record says: its plan and its candidates."""
    random = np.random.default_rng(0)
    names = sorted(name for name in files(whole[1]) if name.startswith("round-0002/"))
    assert len(names) > 4 and read_run(whole[1]).damage == ()
    for path in [whole[1] / name for name in names]:
        text = path.read_bytes()
        try:
            for place in random.integers(len(text) * 8, size=12):
                path.write_bytes(flipped(text, int(place)))
                found = read_run(whole[1])
                is_weights = path.suffix == ".safetensors"
                with pytest.raises(JournalError) if is_weights or len(found.rounds) < 2 else nullcontext():
                    found.weights(2)
                assert is_weights or any(str(path) in damage for damage in found.damage)
        finally:
            path.write_bytes(text)


def flipped(text: bytes, bit: int) -> bytes:
    damaged = bytearray(text)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", lambda r: r["details"].pop("grids")),
        ("run.json", lambda r: r["details"].update(config=7)),
        ("run.json", lambda r: r["details"].update(config={"metrics": {"deep": []}})),
        ("run.json", lambda r: r["identity"].update(budgets="many")),
        ("run.json", lambda r: r.pop("identity")),
    ],
)
def test_a_run_of_another_form_is_refused_by_name(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, name: str, change: Callable
) -> None:
    """Its checksum is right: another program, or another version, wrote it."""
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    record = storage.read_json(folder / name)
    assert record is not None
    change(record)
    storage.write_json(folder / name, record)
    with pytest.raises(FxpruneError, match="run.json|budget"):
        read_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["round"].pop("plan"),
        lambda r: r["round"].update(chosen=99),
        lambda r: r["round"].update(score="high"),
        lambda r: r["round"].update(more=1),
        lambda r: r["round"]["candidates"][0].update(widths={"stem": 2.5}),
        lambda r: r.update(weights=[1]),
        lambda r: r.pop("parent"),
    ],
)
def test_a_round_of_another_form_is_damage(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, change: Callable
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    record = storage.read_json(folder / "round-0002/round.json")
    assert record is not None
    change(record)
    storage.write_json(folder / "round-0002/round.json", record)
    found = read_run(folder)
    assert len(found.rounds) == 1 and "round-0002" in found.damage[0] and "form" in found.damage[0]
