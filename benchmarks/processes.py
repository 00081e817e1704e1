"""One process an item, with limits on time and memory: what crashes or hangs costs one row and not the table."""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks import machine


def each(
    function: Callable[[Any], Any], items: Sequence[Any], *, jobs: int, seconds: float, memory_gib: float
) -> Iterator[tuple[Any, Any, str]]:
    """(item, ``function(item)``, "") as they come, or (item, None, why there is no result).

    seconds: of the processor; of the clock, a process that waits for a busy machine gets six times as many.
    Processes are forked where that is possible: what this one has loaded and warmed up, they have too.
    """
    context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    waiting = list(items)
    running: dict[Connection, tuple[Any, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            item = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(function, item, sender, seconds, memory_gib))
            process.start()
            sender.close()
            running[receiver] = (item, process, time.monotonic() + 6 * seconds)
        nearest = min(deadline for _, _, deadline in running.values())
        ready = wait(list(running), timeout=max(0.0, nearest - time.monotonic()))
        for receiver, (item, process, deadline) in list(running.items()):
            if receiver in ready:
                result, why = _received(receiver, process)
            elif time.monotonic() >= deadline:
                process.kill()
                result, why = None, f"stopped after {6 * seconds:.0f} seconds"
            else:
                continue
            process.join()
            receiver.close()
            del running[receiver]
            yield item, result, why


def _child(function: Callable[[Any], Any], item: Any, sender: Connection, seconds: float, memory_gib: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gib * 2**30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
    machine.one_thread()
    sender.send(function(item))
    sender.close()


def _received(receiver: Connection, process: Any) -> tuple[Any, str]:
    try:
        return receiver.recv(), ""
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return None, "stopped at its limit of processor seconds"
        return None, f"the process ended with exit code {process.exitcode}"
