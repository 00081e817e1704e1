"""No process outlives its search: what a search starts ends when the search does, however that ends.

On Linux the kernel sees to it (PR_SET_PDEATHSIG), so that even a stopped or hung process ends. Elsewhere a thread of
each worker waits for the end of the search, which a worker hung in compiled code cannot follow.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

LINUX = sys.platform == "linux"
_PDEATHSIG = 1
_AT_ONCE = (
    "import ctypes, os, signal; ctypes.CDLL(None).prctl({pdeathsig}, signal.SIGKILL, 0, 0, 0); "
    "os.getppid() == {parent} or os._exit(1); "
)
# The tracker of multiprocessing's resources cleans up once the search is gone; a stopped one has to go on for that.
_TRACKER = "from multiprocessing.resource_tracker import main"
_GOES_ON = f"import ctypes, signal; ctypes.CDLL(None).prctl({_PDEATHSIG}, signal.SIGCONT, 0, 0, 0); "
_libc = ctypes.CDLL(None) if LINUX else None
_lock = threading.Lock()
_users = 0
_plain_command_line, _plain_spawn = spawn.get_command_line, util.spawnv_passfds
_searching: tuple[int, int | None] | None = None
_here = threading.local()


class EndingProcess(SpawnProcess):
    """A process started anew that ends with the thread that starts it, and is not awaited where the program ends in the
    middle of its work: multiprocessing would."""

    def start(self) -> None:
        super().start()
        util.Finalize(None, _end, (weakref.ref(self),), exitpriority=10)

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _ending_command_lines():
            _here.starts = True
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                _here.starts = False


def _end(process: weakref.ref[EndingProcess]) -> None:
    found = process()
    if found is not None and found.is_alive():
        found.kill()


def end_with_parent() -> None:
    """Called in a worker: a thread ends it when the search that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process that multiprocessing started"

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="fxprune-end", daemon=True).start()


@contextmanager
def processes_end_here() -> Iterator[None]:
    """What multiprocessing starts inside (the workers of a DataLoader), forked or anew, ends with this process, at
    once.

    In the main thread alone: the kernel counts the end of a thread as that of the parent. What a fork server starts
    (Python 3.14's own choice) is its child, and ends when it looks for its parent.
    """
    global _searching
    outer, _searching = _searching, (os.getpid(), threading.main_thread().ident)
    try:
        with _ending_command_lines():
            yield
    finally:
        _searching = outer


@contextmanager
def _ending_command_lines() -> Iterator[None]:
    """Processes that are started anew ask the kernel for their end first of all: importing torch takes seconds."""
    global _users
    with _lock:
        _users += 1
        spawn.get_command_line, util.spawnv_passfds = _command_line, _spawn
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                spawn.get_command_line, util.spawnv_passfds = _plain_command_line, _plain_spawn


def _command_line(**given: object) -> list[str]:
    line = _plain_command_line(**given)
    ends = getattr(_here, "starts", False) or _searching == (os.getpid(), threading.get_ident())
    if LINUX and ends and line[-3:-2] == ["-c"]:  # else a program that was frozen
        line[-2] = _AT_ONCE.format(pdeathsig=_PDEATHSIG, parent=os.getpid()) + line[-2]
    return line


def _spawn(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    if LINUX and str(args[-1]).startswith(_TRACKER):
        args = [*args[:-1], _GOES_ON + args[-1]]
    return _plain_spawn(path, args, passfds)


def _in_forked() -> None:
    if _libc is None or _searching is None or _searching != (os.getppid(), threading.get_ident()):
        return
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != _searching[0]:  # it ended in between
        os._exit(1)


if LINUX:
    os.register_at_fork(after_in_child=_in_forked)
