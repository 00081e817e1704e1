"""The folder of a search: one search at a time, from the first file on; gone is an error, finished is left as it is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss
from torch import nn
from typer.testing import CliRunner

from fxprune import FineTune, NetAdaptResult, netadapt
from fxprune.cli.main import app
from fxprune.errors import JournalError
from fxprune.io.storage import Lock
from fxprune.journal.read_run import read_run
from passes.process.settings import torch_threads

CONFIG = FAST.replace(netadapt_max_rounds=2)
TRAIN = FineTune(batches(), lr=0.05)


def run(workdir: Path | None, **changes: Any) -> NetAdaptResult:
    given: dict[str, Any] = {"train": TRAIN, "evaluate": negative_loss, "config": CONFIG, "progress": False}
    return netadapt(make(), 0.5, example_inputs=EXAMPLE, workdir=workdir, **{**given, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(folder: Path) -> dict[str, int]:
    """When each file was written; the lock is taken and given back by every search."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_finished_search_is_left_byte_for_byte(tmp_path: Path) -> None:
    first = run(tmp_path)
    before, times = contents(tmp_path), changed(tmp_path)
    again = run(tmp_path, resume=True)
    assert history(again) == history(first) and again.timings.train == 0
    assert contents(tmp_path) == before and changed(tmp_path) == times
    recorded = read_run(tmp_path).result
    assert recorded is not None and recorded["timings"]["train"] == first.timings.train > 0


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    (tmp_path / "folder_nets.py").write_text(
        "import sys, torch\nfrom torch import nn\nimport fxprune\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))\n"
        "def functions():\n    return (lambda model, steps: None), (lambda model: 1.0)\n"
        "def leaving():\n    return (lambda model, steps: sys.exit(0)), (lambda model: 1.0)\n"
        "def gone():\n    sys.exit(0)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "folder_nets", raising=False)

    def call(data: str, **keys: Any) -> Any:
        lines = {"budget_ratio": 0.7, "budget_reduce_rate_init": 0.3, "model": "folder_nets:net", "data": data, **keys}
        (tmp_path / "config.yml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return CliRunner().invoke(app, ["netadapt", "config.yml", "--input", "1,3,8,8", "--workdir", "search"])

    return call


def test_the_same_command_again_rewrites_nothing(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("folder_nets:functions").exit_code == 0
    before, times = contents(tmp_path / "search"), changed(tmp_path / "search")
    assert command("folder_nets:functions").exit_code == 0
    assert contents(tmp_path / "search") == before and changed(tmp_path / "search") == times


def test_a_command_with_a_lower_budget_goes_on(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("folder_nets:functions").exit_code == 0
    search = tmp_path / "search"
    before, first = contents(search), read_run(search)
    lower = command("folder_nets:functions", budget_ratio=0.5)
    assert lower.exit_code == 0 and "will take about" in lower.output
    now, after = contents(search), read_run(search)
    assert after.rounds[: len(first.rounds)] == first.rounds and len(after.rounds) > len(first.rounds)
    assert all(now[name] == data for name, data in before.items() if name.startswith("round-"))
    shown = CliRunner().invoke(app, ["rounds", "search"])
    assert shown.exit_code == 0 and "flops at 0.5 of the start" in shown.output
    resumed = CliRunner().invoke(app, ["resume", "search", "--trust"])
    assert resumed.exit_code == 0 and contents(search) == now
    higher = command("folder_nets:functions", budget_ratio=0.7)
    assert higher.exit_code == 0 and read_run(search).accepted == first.accepted
    refused = command("folder_nets:functions", budget_type="params")
    assert refused.exit_code == 1 and "budgets" in refused.output and len(refused.output.strip().splitlines()) <= 5


def test_a_folder_in_use_is_left_as_it_is(command: Callable[..., Any], tmp_path: Path) -> None:
    with Lock(tmp_path / "search"):
        refused = command("folder_nets:functions")
        assert refused.exit_code == 1 and f"another process (id {os.getpid()}) is searching" in refused.output
        assert contents(tmp_path / "search") == {"lock": str(os.getpid()).encode()}
    assert command("folder_nets:functions").exit_code == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"data": "folder_nets:leaving"}, "every candidate failed"), ({"data": "folder_nets:gone"}, "called sys.exit(0)"),
     ({"model": "folder_nets:gone", "data": "folder_nets:functions"}, "called sys.exit(0)")],
)  # fmt: skip
def test_a_program_that_leaves_is_no_success(command: Callable[..., Any], keys: dict[str, str], words: str) -> None:
    ended = command(**keys)
    assert ended.exit_code == 1 and words in " ".join(ended.output.split())


@pytest.mark.parametrize("number", ["-1", "4294967296"])
def test_a_seed_of_the_command_line_is_checked(number: str, command: Callable[..., Any], tmp_path: Path) -> None:
    command("folder_nets:functions")
    refused = CliRunner().invoke(app, ["netadapt", "config.yml", "--workdir", "other", "--seed", number])
    assert refused.exit_code == 2 and "--seed" in refused.output and not (tmp_path / "other").exists()
    assert "seed: got" in command("folder_nets:functions", seed=number).output


def _delete(folder: Path) -> None:
    shutil.rmtree(folder)


def _move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def _replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "lock").touch()


def _lose_its_run(folder: Path) -> None:
    (folder / "run.json").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [(_delete, "deleted or moved"), (_move, "deleted or moved"), (_replace, "deleted or moved"),
     (_lose_its_run, "record of the run was deleted")],
)  # fmt: skip
@pytest.mark.parametrize("at", [1, 5])
def test_a_folder_that_is_lost_while_the_search_runs_is_an_error(
    harm: Callable[[Path], None], words: str, at: int, tmp_path: Path
) -> None:
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == at:
            harm(tmp_path / "search")
        return negative_loss(model)

    with pytest.raises(JournalError, match=words):
        run(tmp_path / "search", evaluate=evaluate)
    left = contents(tmp_path / "search") if (tmp_path / "search").exists() else {}
    assert len(calls) == at and ("lock" in left or not left)  # nothing was written into a folder that is not its own


def test_a_run_goes_on_with_the_number_of_threads_that_it_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    class Stopped(Exception):
        pass

    def train(model: nn.Module, steps: int) -> None:
        seen.append(torch.get_num_threads())
        TRAIN(model, steps)

    def stop(workdir: Path) -> None:
        from fxprune.journal.folder import Folder

        save = Folder.save_round
        with pytest.MonkeyPatch.context() as patch:

            def saved(self: Folder, *given: Any) -> None:
                save(self, *given)
                raise Stopped

            patch.setattr(Folder, "save_round", saved)
            with pytest.raises(Stopped):
                run(workdir, train=train)

    with torch_threads(2):
        whole = run(None, train=train)
        stop(tmp_path)
    caplog.clear()
    assert torch.get_num_threads() == 1
    resumed = run(tmp_path, train=train)
    assert history(resumed) == history(whole) and set(seen) == {2} and torch.get_num_threads() == 1
    assert "began with torch.get_num_threads() == 2 and goes on with as many; here it was 1" in caplog.text
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_of_another_kind_of_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr("fxprune.journal.run_identity.device_of", lambda problem: "NVIDIA H100")
    with pytest.raises(JournalError, match="device: cpu there, NVIDIA H100 here"):
        run(tmp_path)


def test_a_lock_stands_for_its_folder(tmp_path: Path) -> None:
    with Lock(tmp_path / "search") as lock:
        assert Path(lock) == tmp_path / "search" and lock.path.read_text() == str(os.getpid())
        lock.check()
    assert lock.path.read_bytes() == b""
    lock.release()
    with Lock(tmp_path / "search") as lock:
        assert run(lock).rounds  # type: ignore[arg-type]
    Lock(tmp_path / "search").release()
