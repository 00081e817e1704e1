"""Nothing outlives its search: workers, what they and the search forked, whatever state they are in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from found_processes import group_of

from fxprune.workers import process_guard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is the kernel of Linux that sees to it")

SCRIPT = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path

def note(name):
    Path(name + "." + str(os.getpid())).touch()

def for_ever():
    note("forked")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1000)

def train(model, steps):
    multiprocessing.get_context("fork").Process(target=for_ever).start()
    while not list(Path().glob("forked.*")):
        time.sleep(0.01)
    note("trains")
    if "stopped" in sys.argv:
        os.kill(os.getpid(), signal.SIGSTOP)
    for_ever()

if "starts" in sys.argv and __name__ != "__main__":  # as an import that takes long
    note("trains")
    time.sleep(1000)

if __name__ == "__main__":
    from small_search import FAST, EXAMPLE, make, negative_loss
    from fxprune import netadapt
    workers = 1 if "serial" in sys.argv else 2
    netadapt(make(), 0.5, example_inputs=EXAMPLE, train=train, evaluate=negative_loss,
             config=FAST.replace(workers=workers), progress=False)
"""


WAYS = [("workers", signal.SIGKILL), ("stopped", signal.SIGINT), ("tracker", signal.SIGKILL)]
MORE = [
    ("serial", signal.SIGKILL), ("workers", signal.SIGTERM), ("stopped", signal.SIGKILL), ("workers", signal.SIGINT),
    ("starts", signal.SIGKILL),
]  # fmt: skip


@pytest.mark.parametrize(("state", "number"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in MORE)])
def test_no_process_outlives_a_search(state: str, number: signal.Signals, tmp_path: Path) -> None:
    script, token = tmp_path / "script.py", f"FXPRUNE_TEST={tmp_path}"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2])))
    environment = {**os.environ, "FXPRUNE_TEST": str(tmp_path), "OMP_NUM_THREADS": "1"}
    search = subprocess.Popen(
        [sys.executable, str(script), state], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    wanted = 1 if state == "serial" else 2
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("trains.*"))) < wanted and time.monotonic() < until:
        time.sleep(0.02)
    assert len(group_of(token)) >= 1 + wanted, "the search and what it started"
    for tracker in [pid for pid, line in group_of(token).items() if "resource_tracker" in line and state == "tracker"]:
        os.kill(tracker, signal.SIGSTOP)
    search.send_signal(number)
    search.wait(timeout=60)
    assert search.returncode != 0
    until = time.monotonic() + 60  # it takes a moment; what is awaited here would never end by itself
    while (left := group_of(token)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


def test_the_guard_follows_what_descends_from_the_cluster_and_nothing_else() -> None:
    table = {1: (0, "a"), 10: (1, "b"), 11: (10, "c"), 12: (11, "d"), 20: (1, "e"), 21: (20, "f")}
    known = process_guard.followed({}, table, {10})
    assert set(known) == {10, 11, 12}
    orphaned = {1: (0, "a"), 11: (1, "c"), 12: (11, "d"), 13: (12, "g"), 10: (1, "another start"), 30: (10, "h")}
    assert set(process_guard.followed(known, orphaned, set())) == {11, 12, 13}  # not the new process with the old id


def test_the_guard_ends_what_a_killed_parent_left(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, os, time\n"
        f"command = [sys.executable, {process_guard.__file__!r}, str(os.getpid())]\n"
        "guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], start_new_session=True)\n"
        "guard.stdin.write(f'{child.pid}\\n'.encode()); guard.stdin.flush()\n"
        "time.sleep(2 * 0.5); print(child.pid, guard.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    until = time.monotonic() + 60
    while set(pids) & set(process_guard.processes()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not set(pids) & set(process_guard.processes())
