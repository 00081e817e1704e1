"""Workers as local processes, one for each GPU where there are GPUs. A worker that dies costs its candidate, not the
search."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.fx import GraphModule

from fxprune.errors import WorkerError
from fxprune.tensors import from_bytes, tensors_of, to_bytes
from fxprune.training import Evaluate, Train, Trained
from fxprune.transport import pack, pack_functions, train_packed
from fxprune.workers import Outcome, Task, sent
from passes import Coupling

log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """One process, and what it is doing."""

    number: int
    process: Any
    pipe: Connection
    round: int = -1
    task: Task | None = None


@dataclass
class Processes:
    """`count` processes. Started anew (spawn), so that each has its own CUDA context.

    The candidate of a process that dies is given to another up to `retries` times, then reported as failed. Threads
    of torch are as many as in this process, because their number can change the last bits of a result: where
    processes and threads are more than there are cores, lower `torch.set_num_threads` first.
    """

    count: int
    train: Train | None
    evaluate: Evaluate | None
    retries: int = 1
    _functions: bytes = b""
    _workers: list[_Worker] = field(default_factory=list)
    _rounds: int = 0

    def start(self) -> None:
        self._functions = pack_functions(self.train, self.evaluate)
        starting = [self._spawn(number) for number in range(self.count)]
        for worker in starting:
            self._await_ready(worker)
        self._workers = starting

    def run(self, network: GraphModule, coupling: Coupling, tasks: Sequence[Task]) -> Iterator[Outcome]:
        self._rounds += 1
        weights = to_bytes(tensors_of(network))
        waiting, tries = list(reversed(tasks)), {task.index: 0 for task in tasks}
        left = len(tasks)
        while left:
            for worker in self._workers:
                if worker.task is None and waiting:
                    task = waiting.pop()
                    self._give(worker, task, weights, pack(network, coupling, task.plan))
            for worker in self._ready():
                done = worker.task
                assert done is not None, "only busy workers are waited for"
                found = self._take(worker)
                if found is None:
                    tries[done.index] += 1
                    code = worker.process.exitcode
                    if tries[done.index] <= self.retries:
                        log.warning("candidate %d: its worker died (exit code %s); it is tried again", done.index, code)
                        waiting.append(done)
                        continue
                    found = Trained(error=f"the worker died {tries[done.index]} times (exit code {code})"), None
                left -= 1
                yield sent(done.index, *found)

    def close(self) -> None:
        for worker in self._workers:
            busy = worker.task is not None
            if not busy:
                with suppress(OSError):
                    worker.pipe.send_bytes(b"")
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers = []

    def _spawn(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        # Not daemonic: a DataLoader in the user's train function may start processes of its own.
        process = context.Process(
            target=work, args=(theirs, self._functions, torch.get_num_threads(), number), name=f"fxprune-{number}"
        )
        process.start()
        theirs.close()
        return _Worker(number, process, mine)

    def _await_ready(self, worker: _Worker) -> None:
        said: str | None = None
        with suppress(EOFError, OSError):
            said = worker.pipe.recv_bytes().decode()
        if said == "ready":
            return
        self._workers = [worker]
        self.close()
        code = worker.process.exitcode
        raise WorkerError(
            f"workers: a process could not start: {said or f'it ended with exit code {code} before it was ready'}. "
            "A script that searches with workers starts the search under `if __name__ == '__main__':`, because each "
            "worker imports the script; functions of an interactive session belong into a module."
        )

    def _give(self, worker: _Worker, task: Task, weights: bytes, packed: bytes) -> None:
        worker.task = task
        with suppress(OSError):  # a dead worker is found when its answer is awaited
            if worker.round != self._rounds:
                worker.pipe.send_bytes(b"W" + weights)
                worker.round = self._rounds
            worker.pipe.send_bytes(b"T" + pickle.dumps((packed, task.steps, task.seed)))

    def _ready(self) -> list[_Worker]:
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        return [busy[pipe] for pipe in wait(list(busy))]  # type: ignore[index]

    def _take(self, worker: _Worker) -> tuple[Trained, bytes | None] | None:
        """The answer of a worker; None where it died, and then another stands in its place."""
        worker.task = None
        try:
            trained, weights = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.pipe.close()
            fresh = self._spawn(worker.number)
            self._await_ready(fresh)
            self._workers[self._workers.index(worker)] = fresh
            return None
        return trained, weights


def work(pipe: Connection, functions: bytes, threads: int, number: int) -> None:
    """The life of a worker process: weights of a round, then candidates of it, until the pipe says or is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the search's to handle
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        unpacked = pickle.loads(functions)
    except Exception as error:  # whatever importing the user's modules raises
        pipe.send_bytes(f"the functions do not load there: {type(error).__name__}: {error}".encode())
        return
    pipe.send_bytes(b"ready")
    weights: dict[str, torch.Tensor] = {}
    with suppress(EOFError, OSError):  # the search is gone
        while message := pipe.recv_bytes():
            if message[:1] == b"W":
                weights = from_bytes(message[1:])
            else:
                pipe.send(train_packed(unpacked, weights, *pickle.loads(message[1:])))
