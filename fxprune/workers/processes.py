"""Workers as local processes, one for each GPU where there are GPUs. A worker that dies, hangs or is stopped costs its
candidate, not the search."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from fxprune.errors import WorkerError
from fxprune.io.tensors import from_bytes, tensors_of, to_bytes
from fxprune.training.candidate import Trained, out_of_time, said
from fxprune.workers.lifetime import EndingProcess, end_with_parent, processes_end_here
from fxprune.workers.protocol import Job, Outcome, Task, sent
from fxprune.workers.repair import Repair
from fxprune.workers.transport import pack, pack_for_workers, pack_functions, train_packed
from passes import Coupling
from passes.process.settings import computing_settings, put_settings

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often times are looked at; of a longer pause only this much counts, so that a suspended search is not late."""
STARTING_S = (120.0, 600.0)
"""How long a worker may take to import what it needs: while it can still be started anew, and the last time."""
ENDING_S = 1.0
"""How long idle workers may take to end by themselves."""


@dataclass(eq=False)
class _Worker:
    """One process, and what it is doing. `repair`: the one that it was given last. `spent_s`: how long it has been at
    its task."""

    number: int
    process: Any
    pipe: Connection
    round: int = -1
    repair: Repair | None = None
    task: Task | None = None
    spent_s: float = 0.0


@dataclass
class Processes:
    """The processes of a job. Started anew (spawn), so that each has its own CUDA context.

    The candidate of a process that dies, or is at it for longer than the job's limit and then killed, is given to
    another up to `retries` times, then reported as failed. Threads of torch are as many as in this process, because
    their number can change the last bits of a result: where processes and threads are more than there are cores, lower
    `torch.set_num_threads` first. So are all other settings that a result depends on.
    """

    sends = True  # candidates go to other processes, so they must be such as can be sent

    job: Job
    _functions: bytes = b""
    _settings: dict[str, object] = field(default_factory=dict)
    _workers: list[_Worker] = field(default_factory=list)
    _rounds: int = 0
    _repair: tuple[Repair | None, bytes] = (None, b"")
    _answers: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)

    def start(self) -> None:
        self._functions, self._settings = pack_functions(self.job.train, self.job.evaluate), computing_settings()
        for number in range(self.job.count):
            self._spawn(number)
        for worker in self._workers:
            self._await_ready(worker)

    def run(
        self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None
    ) -> Iterator[Outcome]:
        self._rounds += 1
        if self._repair[0] is not repair:
            self._repair = repair, pack_for_workers(repair)
        weights = to_bytes(tensors_of(network))
        waiting, tries = list(reversed(tasks)), {task.index: 0 for task in tasks}
        left = len(tasks)
        while left:
            for worker in self._workers:
                if worker.task is None and waiting:
                    task = waiting.pop()
                    self._give(worker, task, weights, pack(network, coupling, task.plan))
            worker, found = self._next_answer()
            done, worker.task = worker.task, None
            assert done is not None, "only busy workers answer"
            if found is None:
                what, reason = self._replace(worker)
                tries[done.index] += 1
                if tries[done.index] <= self.job.retries:
                    log.warning("candidate %d: its worker %s (%s); it is tried again", done.index, what, reason)
                    waiting.append(done)
                    continue
                found = Trained(error=f"the worker {what} {tries[done.index]} times ({reason})"), None
            left -= 1
            yield sent(done.index, *found)

    def close(self) -> None:
        """End every worker, the busy ones at once."""
        for worker in self._workers:
            if worker.task is not None:
                worker.process.kill()
            else:
                with suppress(OSError):  # it is gone already
                    worker.pipe.send_bytes(b"")
        ending = time.monotonic() + ENDING_S
        for worker in self._workers:
            worker.process.join(max(0.0, ending - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def _spawn(self, number: int) -> _Worker:
        """Start a worker and put it in its place; Ctrl-C in between would leave one that nobody ends."""
        mine, theirs = multiprocessing.Pipe()
        # Not daemonic: a DataLoader in the user's train function may start processes of its own.
        process = EndingProcess(
            target=work, args=(theirs, self._functions, self._settings, number), name=f"fxprune-{number}"
        )
        worker = _Worker(number, process, mine)
        with _held_back(signal.SIGINT):
            process.start()
            self._workers[number : number + 1] = [worker]
        theirs.close()
        return worker

    def _await_ready(self, worker: _Worker) -> None:
        """Wait until it can be given work. One that a signal ends, or that is not ready in time (it may be stopped), is
        started anew as often as a candidate is tried again."""
        for tries_left in range(self.job.retries, -1, -1):
            limit_s = STARTING_S[tries_left == 0]
            text, is_late = "", False
            with suppress(EOFError, OSError):
                is_late = not worker.pipe.poll(limit_s)
                text = "" if is_late else worker.pipe.recv_bytes().decode()
            if text == "ready":
                return
            if is_late:
                worker.process.kill()
            worker.process.join(ENDING_S)
            code = worker.process.exitcode
            late = f"it was not ready after {limit_s:g} seconds"
            text = text or (late if is_late else f"it ended with exit code {code} before it was ready")
            if tries_left == 0 or not (is_late or (code is not None and code < 0)):
                break  # what a program does by itself it does again
            log.warning("worker %d: %s; it is started again", worker.number, text)
            worker.pipe.close()
            worker = self._spawn(worker.number)
        self.close()
        raise WorkerError(
            f"workers: a process could not start: {text}. "
            "A script that searches with workers starts the search under `if __name__ == '__main__':`, because each "
            "worker imports the script; functions of an interactive session belong into a module."
        )

    def _give(self, worker: _Worker, task: Task, weights: bytes, packed: bytes) -> None:
        """Send a task and wait for its answer in a thread: a worker that is stopped reads nothing."""
        messages = [] if worker.round == self._rounds else [b"W" + weights]
        if worker.repair is not self._repair[0]:
            worker.repair = self._repair[0]
            messages.append(b"R" + self._repair[1])
        messages.append(b"T" + pickle.dumps((packed, task)))
        worker.task, worker.round, worker.spent_s = task, self._rounds, 0.0

        def ask() -> None:
            found = None
            try:
                with suppress(EOFError, OSError):  # the worker is gone
                    for message in messages:
                        worker.pipe.send_bytes(message)
                    found = worker.pipe.recv()
            finally:
                self._answers.put((worker, found))

        threading.Thread(target=ask, name=f"fxprune-ask-{worker.number}", daemon=True).start()

    def _next_answer(self) -> tuple[_Worker, tuple[Trained, bytes | None] | None]:
        """The next answer of a worker, None where it died; a worker that is late is killed on the way."""
        while True:
            begun = time.monotonic()
            with suppress(queue.Empty):
                return self._answers.get(timeout=TICK_S)
            passed = min(time.monotonic() - begun, 2 * TICK_S)
            for worker in self._workers:
                if worker.task is None:
                    continue
                worker.spent_s += passed
                if self.job.limit_s is not None and worker.spent_s > self.job.limit_s:
                    worker.process.kill()

    def _replace(self, worker: _Worker) -> tuple[str, str]:
        """Put another process in the place of one that ended; what it did, and why."""
        worker.process.join()
        worker.pipe.close()
        code, was_late = worker.process.exitcode, self.job.limit_s is not None and worker.spent_s > self.job.limit_s
        self._await_ready(self._spawn(worker.number))
        return ("was stopped", out_of_time(self.job.limit_s)) if was_late else ("died", f"exit code {code}")


class _held_back:
    """A signal that comes inside is delivered afterwards, and what is started inside begins with it held back."""

    def __init__(self, number: int):
        self.number = number

    def __enter__(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {self.number})

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def work(pipe: Connection, functions: bytes, settings: dict[str, object], number: int) -> None:
    """The loop of a worker process: weights of a round, then its candidates, until the pipe sends the end or closes."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the search's to handle
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    put_settings(settings, "as in the search")
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        unpacked = pickle.loads(functions)
    except BaseException as error:  # whatever importing the user's modules raises, sys.exit too
        pipe.send_bytes(said("the functions do not load there", error).encode())
        return
    pipe.send_bytes(b"ready")
    weights: dict[str, torch.Tensor] = {}
    repair: Repair | None = None
    with suppress(EOFError, OSError), processes_end_here():  # the search is gone
        while message := pipe.recv_bytes():
            if message[:1] == b"W":
                weights = from_bytes(message[1:])
            elif message[:1] == b"R":
                repair = pickle.loads(message[1:])
            else:
                packed, task = pickle.loads(message[1:])
                pipe.send(train_packed(unpacked, weights, packed, task, repair))


def of_job(job: Job) -> Processes:
    """Workers for a search."""
    return Processes(job)
