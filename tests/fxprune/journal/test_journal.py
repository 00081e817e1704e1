"""The journal: killed, damaged, foreign, full, locked; whatever is resumed ends in the same network."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from journaled_search import CONFIG, assert_same, files, run
from small_search import make, negative_loss

from fxprune import NetAdaptResult
from fxprune.errors import InputError, JournalError
from fxprune.io import storage
from fxprune.io.tensors import from_bytes
from fxprune.journal.read_run import read_run
from passes.documents.whole_files import TEMPORARY


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it and tidy up."""


class KillAt:
    """Raises at the n-th write of the journal, before or after the file is in its place."""

    def __init__(self, at: int, after: bool):
        self.left, self.after, self.write = at, after, storage.os.replace

    def __call__(self, source: Any, target: Any) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        self.write(source, target)
        if self.left == 0:
            raise Killed


def put_bytes(data: bytes, network: torch.nn.Module) -> bool:
    return all(torch.equal(from_bytes(data)[name], tensor) for name, tensor in network.state_dict().items())


def test_the_journal_changes_nothing_and_keeps_what_it_should(whole: tuple[NetAdaptResult, Path]) -> None:
    result, folder = whole
    assert_same(run(None), result)
    found = files(folder)
    assert {"run.json", "baseline.json", "result.json", "lock"} <= set(found)
    for number in (1, 2, 3):
        assert {f"round-000{number}/{name}" for name in ("round.json", "plan.json", "weights.safetensors")} <= set(
            found
        )
    assert not [name for name in found if "candidate" in name and name.endswith(".safetensors")]  # losers and winners
    assert not [name for name in found if name.endswith(TEMPORARY)]


def test_read_run(whole: tuple[NetAdaptResult, Path], tmp_path: Path) -> None:
    result, folder = whole
    found = read_run(folder)
    assert found.rounds == result.rounds and found.baseline == result.baseline
    assert found.config == CONFIG and found.budgets == result.budgets and not found.data_free
    assert (found.start, found.original_widths) == (result.start, result.original_widths)
    assert found.grids["stem"] == (2, 2) and "branch.2" in found.layers["stem"] and found.model["class"] == "Net"
    assert found.totals["flops"] == result.start["flops"] and not found.unfinished and not found.damage
    assert found.result is not None and found.result["certificate"]["max_error"] == result.certificate.max_error
    assert {f["tensor"] for f in found.frozen} >= {"head.weight"} and found.environment["python"]
    assert put_bytes(found.weights(2), result.restore(2))
    with pytest.raises(JournalError, match="there is no run here"):
        read_run(tmp_path)


def test_a_finished_run_resumes_without_training(whole: tuple[NetAdaptResult, Path]) -> None:
    result, folder = whole

    def forbidden(*_: Any) -> float:
        raise AssertionError("nothing is left to do")

    again = run(folder, train=forbidden, evaluate=forbidden, resume=True)
    assert_same(again, result)
    assert torch.equal(again.restore(2).state_dict()["head.weight"], result.restore(2).state_dict()["head.weight"])
    with pytest.raises(JournalError, match="resume=False"):
        run(folder, resume=False)


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before or after the 1st, 2nd, ... 5th write of each attempt, until one comes through."""
    result, folder = whole[0], tmp_path / "run"
    for kills in range(200):
        with monkeypatch.context() as patch:
            patch.setattr(storage.os, "replace", KillAt(1 + kills % 5, after))
            try:
                final = run(folder)
            except Killed:
                continue
        assert kills > 8
        assert_same(final, result)
        return
    raise AssertionError("the run never ended")


def test_another_run_is_refused_with_the_difference(
    whole: tuple[NetAdaptResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole[1]
    other = make()
    other.head.bias.data += 1  # type: ignore[union-attr, operator]
    with pytest.raises(JournalError, match="the model's weights"):
        run(folder, model=other)
    with pytest.raises(JournalError, match="the model's graph"):
        run(folder, model=torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 4, 3)))
    with pytest.raises(JournalError, match="config netadapt_max_iter: 2 there, 3 here; config select: "):
        run(folder, config=CONFIG.replace(netadapt_max_iter=3, select="ratio", netadapt_max_rounds=9))
    with pytest.raises(JournalError, match="seed: 0 there, 4 here"):
        run(folder, seed=4)
    with pytest.raises(JournalError, match="whether there is a train function: true there, false here"):
        run(folder, train=None)
    monkeypatch.setattr("fxprune.version.__version__", "9.9")
    with pytest.raises(JournalError, match="fxprune's version: .* there, 9.9 here"):
        run(folder)


def test_who_trains_may_differ(whole: tuple[NetAdaptResult, Path]) -> None:
    assert_same(run(whole[1], config=CONFIG.replace(netadapt_dir="elsewhere", worker_retries=3)), whole[0])


def test_a_second_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    seen = []

    def evaluate(model: torch.nn.Module) -> float:
        if not seen:
            seen.append(1)
            with pytest.raises(
                JournalError, match=f"another process \\(id {os.getpid()}\\) is searching in this folder"
            ):
                run(tmp_path / "run")
        return negative_loss(model)

    run(tmp_path / "run", evaluate=evaluate)
    assert seen and run(tmp_path / "run").met in (True, False)  # the lock is given back


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full. Nothing that was finished is lost"), (errno.EROFS, "cannot be written to")],
)
def test_full_disk_and_read_only_folder(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    folder, real, left = tmp_path / "run", os.fsync, [9]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", fsync)
        with pytest.raises(JournalError, match=said):
            run(folder)
    assert not list(folder.rglob(f"*{TEMPORARY}"))
    assert_same(run(folder), whole[0])


def test_a_disk_that_is_full_before_the_search_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that makes an empty file, and has no room for what is written to it."""

    def full() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "getpid", full)
        with pytest.raises(JournalError, match="lock: the disk is full"):
            storage.Lock(tmp_path / "run")
    storage.Lock(tmp_path / "run").release()  # it was given back


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_what_a_search_forked_does_not_hold_its_folder(tmp_path: Path) -> None:
    """The worker of a DataLoader lives some seconds longer than a search that was killed."""
    lock = storage.Lock(tmp_path)
    reader, writer = os.pipe()
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(begins, b"x")
        os.read(reader, 1)  # until the test ends
        os._exit(0)
    try:
        os.read(begun, 1)
        with pytest.raises(JournalError, match="another process"):
            storage.Lock(tmp_path)  # what the child gave back is still held here
        lock.release()
        storage.Lock(tmp_path).release()
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        for end in (reader, begun, begins):
            os.close(end)


def test_ctrl_c_leaves_a_journal_that_resumes(
    whole: tuple[NetAdaptResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def evaluate(model: torch.nn.Module) -> float:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return negative_loss(model)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", evaluate=evaluate)
    assert "the same call with workdir=" in caplog.text
    assert_same(run(tmp_path / "run", evaluate=evaluate), whole[0])
    candidates = sum(c.trained for r in whole[0].rounds for c in r.candidates)
    assert len(calls) == 1 + candidates + 1  # the unpruned network, and once more what was interrupted


def test_a_serial_run_goes_on_with_processes(whole: tuple[NetAdaptResult, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[1], folder)
    for name in ("round-0003/round.json", "round-0003/candidate-001.json"):
        (folder / name).unlink()
    assert_same(run(folder, config=CONFIG.replace(workers=2)), whole[0])


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(JournalError, match="something else is there"):
        run(tmp_path / "run")


def test_resume_where_nothing_was_written_yet_begins(tmp_path: Path) -> None:
    assert run(tmp_path / "run", resume=True).rounds
    with pytest.raises(InputError, match="resume=True needs the workdir"):
        run(None, resume=True)


def test_nothing_is_pickled(whole: tuple[NetAdaptResult, Path]) -> None:
    for name in files(whole[1]):
        data = (whole[1] / name).read_bytes()
        if name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".safetensors"):
            assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        else:
            assert name == "lock"


SCRIPT = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import torch
torch.set_num_threads(1)
sys.path[:0] = {tests!r}
from pathlib import Path
from fxprune import FineTune
from journaled_search import batches, run

def train(model, steps):
    Path(sys.argv[2]).touch()
    FineTune(batches(), lr=0.05)(model, steps)

run(Path(sys.argv[1]), train=train)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(whole: tuple[NetAdaptResult, Path], tmp_path: Path, kills: int) -> None:
    """Killed while it trains, again and again in one folder; where a run gets through, another begins in a new one."""
    generator, script = (
        torch.Generator().manual_seed(11),
        SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[2])]),
    )
    timings = run(tmp_path / "timed").timings
    longest = timings.total - timings.analysis - timings.verify
    folder, marker, killed, interrupted = tmp_path / "run-0", tmp_path / "training", 0, 0
    while killed < kills:
        marker.unlink(missing_ok=True)
        command = [sys.executable, "-c", script, str(folder), str(marker)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
        while not marker.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(float(torch.rand((), generator=generator)) * longest)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
            interrupted += not (folder / "result.json").exists()
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        if (folder / "result.json").exists():
            assert_same(run(folder), whole[0])
            folder = tmp_path / f"run-{killed}"
    assert 2 * interrupted > kills, "most kills should come in the middle of a search"
    assert_same(run(folder), whole[0])
