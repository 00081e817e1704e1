"""No process outlives its search: what a search starts ends when the search does, however that dies.

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
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

LINUX = sys.platform == "linux"
_PDEATHSIG = 1
_AT_ONCE = (
    "import ctypes, os, signal; ctypes.CDLL(None).prctl({pdeathsig}, signal.SIGKILL, 0, 0, 0); "
    "os.getppid() == {parent} or os._exit(1); "
)
_launching = threading.Lock()


class EndingProcess(SpawnProcess):
    """A process started anew that ends with the thread that starts it. A plain one is on its own while it imports
    torch, which takes seconds."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        if not LINUX or getattr(sys, "frozen", False):
            return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        with _launching:
            plain = spawn.get_command_line
            spawn.get_command_line = _ending_command_line  # type: ignore[assignment]
            try:
                return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
            finally:
                spawn.get_command_line = plain


def _ending_command_line(**given: Any) -> list[str]:
    program = _AT_ONCE.format(pdeathsig=_PDEATHSIG, parent=os.getpid())
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    program += f"from multiprocessing.spawn import spawn_main; spawn_main({arguments})"
    flags = multiprocessing.util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [os.fsdecode(spawn.get_executable()), *flags, "-c", program, "--multiprocessing-fork"]


def end_with_parent() -> None:
    """Called in a worker: a thread ends it when the search that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process that multiprocessing started"

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="fxprune-end", daemon=True).start()


@contextmanager
def forked_processes_end_here() -> Iterator[None]:
    """What is forked inside (the workers of a DataLoader) ends with this process, at once.

    Of forks of the main thread alone: the kernel counts the end of a thread as that of the parent.
    """
    global _forking
    outer, _forking = _forking, (os.getpid(), threading.main_thread().ident)
    try:
        yield
    finally:
        _forking = outer


_forking: tuple[int, int | None] | None = None
_libc = ctypes.CDLL(None) if LINUX else None


def _in_forked() -> None:
    if _forking is None or _libc is None or _forking != (os.getppid(), threading.get_ident()):
        return
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != _forking[0]:  # it ended in between
        os._exit(1)


if LINUX:
    os.register_at_fork(after_in_child=_in_forked)
