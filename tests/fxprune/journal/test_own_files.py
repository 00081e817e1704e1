"""A folder may hold files of the user's: none of them is overwritten, emptied or removed by a search."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from journaled_search import assert_same, run
from typer.testing import CliRunner

from fxprune import NetAdaptResult
from fxprune.cli.main import app
from fxprune.errors import JournalError

NAMES = [
    "run.json", "baseline.json", "curves.json", "statistics.safetensors", "removed.json", "goals.json", "result.json",
    "command.json", "lock", "round-0001/round.json", "round-0001/plan.json", "round-0001/weights.safetensors",
    "round-0002/candidate-001.json", "round-0002/candidate-001.safetensors",
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["mine", '{"mine": 1}', "\xff"], ids=["text", "json", "bytes"])
def test_a_file_of_the_users_is_refused_before_anything_is_written(name: str, text: str, tmp_path: Path) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(text.encode("latin1"))
    with pytest.raises(JournalError, match=f"{name} is there, and .* nothing was written. Choose another workdir"):
        run(tmp_path)
    assert contents(tmp_path) == {name: text.encode("latin1")}


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name and name.endswith(".json")])
def test_a_file_of_the_users_in_the_folder_of_a_search_is_refused_too(
    whole: tuple[NetAdaptResult, Path], name: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[1], tmp_path / "run")
    (folder / name).write_text("mine")
    with pytest.raises(JournalError, match=f"{name} is there"):
        run(folder)
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("kept", [0, 1, 5, 12, 40])
def test_a_record_that_is_cut_off_anywhere_is_known(
    whole: tuple[NetAdaptResult, Path], kept: int, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[1], tmp_path / "run")
    for name in ("run.json", "baseline.json", "result.json"):
        os.truncate(folder / name, kept)
    assert_same(run(folder), whole[0])


def test_temporary_files_of_the_users_stay(whole: tuple[NetAdaptResult, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(whole[1], tmp_path / "run")
    ours = folder / "round-0001" / f"plan.json.{'0f' * 16}.tmp"
    mine = [folder / "notes.tmp", folder / "other" / ours.name]
    mine[1].parent.mkdir()
    for path in (ours, *mine):
        path.write_text("mine")
    run(folder)
    assert not ours.exists() and all(path.read_text() == "mine" for path in mine)


def test_the_command_line_refuses_them_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_files_nets.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))\n"
    )
    (tmp_path / "config.yml").write_text("model: own_files_nets.py:net\nbudget_ratio: 0.5\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "run.json").write_text("mine")
    done = CliRunner().invoke(app, ["netadapt", "config.yml", "--input", "1,4", "--workdir", "search"])
    assert done.exit_code == 1 and "run.json is there" in " ".join(done.output.split())
    assert contents(tmp_path / "search") == {"run.json": b"mine"}
