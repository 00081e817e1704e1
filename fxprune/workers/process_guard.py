"""A process beside a search that ends what the search's Ray cluster left behind: run as a script, with no import but
the standard library's.

Ray's own agents look for their parent every few seconds and may outlive a search that was killed by more than ten. So
this process follows the descendants of the search (on Linux, in /proc), and kills them when its standard input ends,
which happens when the search closes it or dies.

    python process_guard.py PARENT [PID ...]      PIDs: children of the search that are none of the cluster's

A line on its standard input names the processes that the cluster consists of; until then each new child of the search
is taken for one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

TICK_S = 0.3
LAST_S = 2.0


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the time of start of each process, by its id; empty where there is no /proc."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", encoding="latin-1") as file:
                fields = file.read().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(name)] = int(fields[1]), fields[19]
    return found


def followed(known: dict[int, str], table: dict[int, tuple[int, str]], roots: set[int]) -> dict[int, str]:
    """The processes that are known or among the roots and still run, with all their descendants."""
    found = {pid: start for pid, start in known.items() if table.get(pid, (0, ""))[1] == start}
    found.update({pid: table[pid][1] for pid in roots if pid in table})
    more = True
    while more:
        children = {pid: start for pid, (parent, start) in table.items() if parent in found and pid not in found}
        more = bool(children)
        found.update(children)
    return found


def guard(parent: int, others: set[int]) -> None:
    roots: set[int] | None = None
    known: dict[int, str] = {}
    others = others | {os.getpid()}
    while os.getppid() == parent:
        table = processes()
        named = {pid for pid, (above, _) in table.items() if above == parent} - others if roots is None else roots
        known = followed(known, table, named)
        if select.select([0], [], [], TICK_S)[0]:
            line = os.read(0, 1 << 16)
            if not line:
                break
            roots = {int(word) for word in line.split()}
            known = {pid: start for pid, start in known.items() if pid not in others}
    until = time.monotonic() + LAST_S
    while time.monotonic() < until:
        known = followed(known, processes(), set())
        for pid in known:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not known:
            break
        time.sleep(0.05)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard(int(sys.argv[1]), {int(word) for word in sys.argv[2:]})
