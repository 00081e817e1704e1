"""Workers on a Ray cluster: the weights of a round lie once in the object store, each candidate is a task."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from fxprune.errors import WorkerError
from fxprune.tensors import from_bytes, tensors_of, to_bytes
from fxprune.training import Evaluate, Train, Trained
from fxprune.transport import pack, train_packed
from fxprune.workers import Outcome, Task, sent
from passes import Coupling

log = logging.getLogger(__name__)

OPTIONS = ("num_cpus", "num_gpus", "resources", "memory")


@dataclass
class OnRay:
    """Candidates as Ray tasks. `settings`: num_cpus, num_gpus, resources, memory of one candidate; all else goes to
    `ray.init`.

    A candidate whose worker or node is lost is tried again up to `retries` times, then reported as failed.
    """

    train: Train | None
    evaluate: Evaluate | None
    retries: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    _functions: Any = None
    _started: bool = False

    def start(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise WorkerError(
                'workers="ray" needs Ray, which is not installed: pip install "fxprune[ray]", or workers=N.'
            ) from error
        if not ray.is_initialized():
            given = {key: value for key, value in self.settings.items() if key not in OPTIONS}
            ray.init(**{"include_dashboard": False, "logging_level": logging.ERROR, **given})
            self._started = True
        try:
            self._functions = ray.put(ray.cloudpickle.dumps((self.train, self.evaluate)))
        except Exception as error:  # pickling runs the code of whatever is in there
            raise WorkerError(
                f"workers: train and evaluate cannot be sent to Ray: {type(error).__name__}: {error}. Keep open "
                "files, locks, loaders with workers and the like out of them, and make them inside the function."
            ) from error

    def run(self, network: GraphModule, coupling: Coupling, tasks: Sequence[Task]) -> Iterator[Outcome]:
        import ray

        options = {"num_cpus": 1, **{key: self.settings[key] for key in OPTIONS if key in self.settings}}
        remote = ray.remote(_candidate).options(max_retries=0, **options)
        weights = ray.put(to_bytes(tensors_of(network)))
        threads = torch.get_num_threads()
        tries = {task.index: 0 for task in tasks}

        def submit(task: Task) -> Any:
            packed = pack(network, coupling, task.plan)
            return remote.remote(self._functions, weights, packed, task.steps, task.seed, threads)

        running = {submit(task): task for task in tasks}
        while running:
            done, _ = ray.wait(list(running))
            for reference in done:
                task = running.pop(reference)
                try:
                    found = pickle.loads(ray.get(reference))
                except ray.exceptions.RayError as error:
                    tries[task.index] += 1
                    reason = str(error).strip().splitlines()[0]
                    if tries[task.index] <= self.retries:
                        log.warning("candidate %d: its worker was lost (%s); it is tried again", task.index, reason)
                        running[submit(task)] = task
                        continue
                    found = Trained(error=f"the worker was lost {tries[task.index]} times: {reason}"), None
                yield sent(task.index, *found)

    def close(self) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def _candidate(functions: bytes, weights: bytes, packed: bytes, steps: int, seed: int, threads: int) -> bytes:
    """One candidate, in a Ray worker. Pickled here, so that Ray need not know our types."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        unpacked = pickle.loads(functions)
    except Exception as error:  # whatever importing the user's modules raises there
        reason = f"the functions do not load on the cluster: {type(error).__name__}: {error}; see Ray's runtime_env"
        return pickle.dumps((Trained(error=reason), None))
    return pickle.dumps(train_packed(unpacked, from_bytes(weights), packed, steps, seed))
