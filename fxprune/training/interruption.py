"""What ends a user's function from outside: a signal that asks the process to end, and a limit of its time."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
    if hasattr(signal, name)
)
AGAIN_S = 10.0
"""A function that catches the end of its time and goes on is stopped again after so many seconds."""


class OutOfTime(BaseException):
    """Raised inside a function at the end of its time; no Exception, which functions catch and go on."""


@dataclass
class Ending:
    """What came from outside while a function ran.

    raised: what the handler of a signal raised (KeyboardInterrupt of Ctrl-C, SystemExit of a caller's own handler),
    whatever the function made of it. late: its time is over. handler: that of Ctrl-C while signals are seen, which
    Python allows in the main thread alone.
    """

    raised: BaseException | None = None
    late: bool = False
    handler: object = None

    def is_interruption(self, error: BaseException) -> bool:
        """Whether an exception ends the search: a real Ctrl-C does, a KeyboardInterrupt that a function raises itself
        does not. Where signals are not seen, or the function took Ctrl-C for itself, it is taken for a real one."""
        unseen = self.handler is None or signal.getsignal(signal.SIGINT) is not self.handler
        return self.raised is not None or (isinstance(error, KeyboardInterrupt) and unseen)


@contextmanager
def watched(limit_s: float | None = None) -> Iterator[Ending]:
    """See the signals that ask the process to end, and raise OutOfTime inside after `limit_s` seconds.

    Both need the main thread, and the limit needs SIGALRM, which the caller does not use himself: elsewhere a
    function is awaited for as long as it takes. Code in C that does not return to Python is not stopped.
    """
    found = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, _noting(found, handler))
        if before[signal.SIGINT] is not None:  # else it belongs to a program that Python is embedded in
            found.handler = signal.getsignal(signal.SIGINT)
        with _alarm(found, limit_s):
            yield found
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _noting(found: Ending, handler: Callable[[int, Any], Any]) -> Callable[[int, object], object]:
    def noting(number: int, frame: object) -> object:
        try:
            return handler(number, frame)
        except BaseException as error:
            found.raised = error
            raise

    return noting


@contextmanager
def _alarm(found: Ending, limit_s: float | None) -> Iterator[None]:
    free = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)
    if limit_s is None or not math.isfinite(limit_s) or not free or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    running = True

    def ring(number: int, frame: object) -> None:
        if running:
            found.late = True
            raise OutOfTime

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        try:
            running = False
        finally:  # it may ring just before the line above
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
