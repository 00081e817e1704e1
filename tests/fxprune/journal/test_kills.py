"""Kills at random moments of a search and of its workers: resumed bit for bit, and no process left three seconds
later.

    pytest -m slow tests/fxprune/journal/test_kills.py -s        20 kills of each kind; FXPRUNE_KILLS=60 for more
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from found_processes import group_of

from fxprune.journal.read_run import read_run
from fxprune.workers import process_guard

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]  # fmt: skip
KILLS = int(os.environ.get("FXPRUNE_KILLS", "20"))
GRACE_S = 3.0

PROGRAM = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
from torch.utils.data import DataLoader, TensorDataset
from small_search import EXAMPLE, FAST, batches, make, negative_loss
from fxprune import FineTune, netadapt

inputs, targets = (torch.cat(part) for part in zip(*batches()))

def train(model, steps):
    loader = DataLoader(TensorDataset(inputs, targets), 6, shuffle=True, num_workers=int(sys.argv[3]))
    FineTune(loader, lr=0.05)(model, steps)
    time.sleep(0.05)

if __name__ == "__main__":
    netadapt(make(), 0.5, example_inputs=EXAMPLE, train=train, evaluate=negative_loss, workdir=sys.argv[1],
             config=FAST.replace(netadapt_max_rounds=3, workers=int(sys.argv[2]), worker_retries=9,
                                 candidate_time_limit=20), progress=False)
"""


@dataclass
class Searches:
    """Starts one search in a folder again and again; `workers` and `loaders` are the numbers of processes."""

    folder: Path
    workers: int
    loaders: int
    seed: int
    begun: int = 0
    slowest_s: float = 0.0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        (self.folder / "program.py").write_text(PROGRAM.format(tests=str(Path(__file__).parents[2])))
        self.token = f"FXPRUNE_KILL_TEST={self.folder}"

    def start(self, workdir: str) -> subprocess.Popen:
        arguments = [workdir, str(self.workers), str(self.loaders)]
        return subprocess.Popen(
            [sys.executable, "program.py", *arguments], cwd=self.folder, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FXPRUNE_KILL_TEST": str(self.folder)},
        )  # fmt: skip

    def whole(self) -> float:
        """One search without a kill; how long it takes."""
        begun = time.monotonic()
        assert self.start("whole").wait(timeout=600) == 0
        return time.monotonic() - begun

    def end(self) -> None:
        """Wait until no process is left; the time that it took is kept."""
        begun = time.monotonic()
        while group_of(self.token):
            assert time.monotonic() - begun < GRACE_S, group_of(self.token)
            time.sleep(0.02)
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    def check(self, workdir: str) -> None:
        """The same candidates, scores, choices and weights as without a kill."""
        assert found_in(self.folder / workdir) == found_in(self.folder / "whole")


def found_in(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    assert run.result is not None and not run.damage
    seconds = ("seconds", "seconds_train", "seconds_evaluate")
    records = json.loads(json.dumps([(folder / f"round-{r.round:04d}/round.json").read_text() for r in run.rounds]))
    plain = [_without(json.loads(text)["payload"], seconds) for text in records]
    weights = [run.weights(record.round) for record in run.rounds]
    return {"rounds": plain, "weights": weights, "score": run.result["score"], "widths": run.result["widths"]}


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


KINDS = {"serial": (1, 0), "serial, loaders": (1, 2), "workers": (2, 0), "workers, loaders": (2, 1)}


@pytest.fixture(params=KINDS)
def searches(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Searches]:
    workers, loaders = KINDS[request.param]
    found = Searches(tmp_path, workers, loaders, seed=10 * workers + loaders)
    yield found
    for pid in group_of(found.token):
        os.kill(pid, signal.SIGKILL)


def test_kills_of_the_search(searches: Searches) -> None:
    """SIGKILL, SIGTERM and SIGINT from its first moment to its last."""
    longest, killed, finished = searches.whole(), 0, 0
    workdir = "run-0"
    while killed < KILLS:
        process = searches.start(workdir)
        time.sleep(searches.random.uniform(0, 1.1 * longest))
        if process.poll() is None:
            process.send_signal(searches.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            killed += 1
        process.wait(timeout=600)
        searches.end()
        if process.returncode == 0 or (searches.folder / workdir / "result.json").is_file():
            finished += 1
            searches.check(workdir)
            workdir = f"run-{killed}"
    assert searches.start(workdir).wait(timeout=600) == 0
    searches.check(workdir)
    print(f"\n{killed} kills, {finished + 1} searches ended as without; slowest end {searches.slowest_s:.2f} s")


def test_kills_of_workers_and_parents(searches: Searches) -> None:
    """Any process of the search but one of the user's data loaders is killed or stopped, in turn the search itself."""
    if searches.workers == 1:
        pytest.skip("a serial search has no workers")
    longest, killed, parents, finished, workdir = searches.whole(), 0, 0, 0, "run-0"
    while killed < KILLS:
        process = searches.start(workdir)
        time.sleep(searches.random.uniform(0, longest))
        children = [pid for pid, (parent, _) in process_guard.processes().items() if parent == process.pid]
        if process.poll() is None and killed % 2 and children:
            number = searches.random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            os.kill(searches.random.choice(children), number)
            killed += 1
        elif process.poll() is None:
            process.kill()
            killed, parents = killed + 1, parents + 1
        process.wait(timeout=600)
        searches.end()
        if process.returncode == 0:
            finished += 1
            searches.check(workdir)
            workdir = f"run-{killed}"
    assert searches.start(workdir).wait(timeout=600) == 0
    searches.check(workdir)
    print(f"\n{killed} kills, {parents} of parents; {finished + 1} searches ended as without;"
          f" slowest end {searches.slowest_s:.2f} s")  # fmt: skip
