"""Workers on a Ray cluster: the weights of a round lie once in the object store, each candidate is a task, and so is
each shard of the calibration data."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from fxprune.errors import WorkerError
from fxprune.io.tensors import from_bytes, tensors_of, to_bytes
from fxprune.training.candidate import Trained, out_of_time, said
from fxprune.workers import process_guard
from fxprune.workers.coupled_network import CoupledNetwork
from fxprune.workers.observing import Shard, Told, observe_packed
from fxprune.workers.protocol import Job, Outcome, Task, sent
from fxprune.workers.repair import Repair
from fxprune.workers.transport import pack, pack_for_workers, train_packed
from passes import Coupling, PassError, Statistics
from passes.process.settings import computing_settings, put_settings

log = logging.getLogger(__name__)

OPTIONS = ("num_cpus", "num_gpus", "resources", "memory")
TICK_S = 0.5
LOOPBACK = "127.0.0.1"
CLUSTER_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch: where it is 0, a node's address is that of the loopback interface. Ray replaces any other way to
say so (`_node_ip_address="127.0.0.1"`) by the address of the network, and its servers listen on all interfaces."""


@dataclass(eq=False)
class _Running:
    """A candidate on the cluster. `process`: of which node it is, and its id; None while it waits for a place."""

    task: Task
    process: tuple[str, int] | None = None
    spent_s: float = 0.0


@dataclass
class OnRay:
    """Candidates as Ray tasks.

    The job's `settings`: num_cpus, num_gpus, resources, memory of one candidate; all else goes to `ray.init`.

    Without an `address` (or $RAY_ADDRESS) a cluster of its own is started on this machine: it listens on the loopback
    interface alone, and ends with the search, however that dies. A candidate whose worker or node is lost, or that
    takes longer than the job's limit and is then killed, is tried again up to `retries` times, then reported as
    failed.
    """

    sends = True  # candidates go to other processes, so they must be such as can be sent

    job: Job
    _functions: object = None
    _repair: tuple[Repair, object] | None = None
    _cluster: _OwnCluster | None = None
    _joined: bool = False

    def start(self) -> None:
        given = {key: value for key, value in self.job.settings.items() if key not in OPTIONS}
        given = {"include_dashboard": False, "logging_level": logging.ERROR, **given}
        own = "address" not in given and "RAY_ADDRESS" not in os.environ
        if own and "ray" not in sys.modules and "_node_ip_address" not in given:
            os.environ.setdefault(CLUSTER_SWITCH, "0")  # it is read by the import
        try:
            import ray
        except ImportError as error:
            raise WorkerError(
                'workers="ray" needs Ray, which is not installed: pip install "fxprune[ray]", or workers=N.'
            ) from error
        if not ray.is_initialized():
            if own:
                self._cluster = _OwnCluster(ray)
                self._cluster.start(given)
            else:
                ray.init(**given)
            self._joined = True
        self._check_room(ray)
        try:
            self._functions = ray.put(ray.cloudpickle.dumps((self.job.train, self.job.evaluate)))
        except Exception as error:  # pickling runs the code of whatever is in there
            raise WorkerError(
                f"workers: train and evaluate cannot be sent to Ray: {type(error).__name__}: {error}. Keep open "
                "files, locks, loaders with workers and the like out of them, and make them inside the function."
            ) from error

    def run(
        self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None
    ) -> Iterator[Outcome]:
        import ray

        if repair is not None and (self._repair is None or self._repair[0] is not repair):
            self._repair = repair, ray.put(pack_for_workers(repair))
        stored = self._repair[1] if repair is not None and self._repair is not None else None

        remote = ray.remote(_candidate).options(max_retries=0, num_returns="streaming", **self._options)
        weights, settings = ray.put(to_bytes(tensors_of(network))), computing_settings()
        tries = {task.index: 0 for task in tasks}

        def submit(task: Task) -> object:
            packed = pack(network, coupling, task.plan)
            return remote.remote(self._functions, weights, packed, task, stored, settings)

        running = {submit(task): _Running(task) for task in tasks}
        while running:
            begun = time.monotonic()
            done, _ = ray.wait(list(running), timeout=TICK_S)
            ended = [(stream, _next(ray, stream, running[stream])) for stream in done]
            ended += self._late(ray, running, min(time.monotonic() - begun, 2 * TICK_S))
            for stream, found in ended:
                if found is None or stream not in running:
                    continue
                task = running.pop(stream).task
                if isinstance(found, str):
                    tries[task.index] += 1
                    if tries[task.index] <= self.job.retries:
                        log.warning("candidate %d: its worker was lost (%s); it is tried again", task.index, found)
                        running[submit(task)] = _Running(task)
                        continue
                    found = Trained(error=f"the worker was lost {tries[task.index]} times: {found}"), None
                yield sent(task.index, *found)

    def observe(self, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told) -> Iterator[Statistics]:
        """One task a shard; the network lies once in the object store. A shard whose worker is lost is tried again."""
        import ray

        network, settings, done = ray.put(pack_for_workers(dense)), computing_settings(), 0
        remote = ray.remote(_observed).options(max_retries=self.job.retries, **self._options)
        found = [remote.remote(network, pack_for_workers(shard), settings) for shard in shards]
        for number, (shard, given) in enumerate(zip(shards, found, strict=True)):
            try:
                statistics = pickle.loads(ray.get(given))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PassError):  # the data's fault, not the cluster's
                    raise error.cause from None
                raise WorkerError(f"workers: shard {number} of the calibration data failed: {error.cause!r}") from error
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"workers: shard {number} of the calibration data was lost with its worker "
                    f"{1 + self.job.retries} times: {_first_line(error)}"
                ) from error
            done += shard.samples
            progress(done)
            yield statistics

    def _check_room(self, ray: ModuleType) -> None:
        """WorkerError where no node of a cluster of its own can ever hold a candidate; another may still grow."""
        asked = {"CPU": self._options["num_cpus"], "GPU": self._options.get("num_gpus", 0)}
        asked |= {"memory": self._options.get("memory", 0), **self._options.get("resources", {})}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            return
        have = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
        lacking = ", ".join(f"{name} {asked[name]} of {have[name]:g}" for name in asked if have[name] < asked[name])
        text = f"workers: a candidate asks for more than any node of the Ray cluster has ({lacking or 'no one node'})"
        if self._cluster is not None:
            raise WorkerError(f"{text}; lower num_cpus, num_gpus, memory or resources under ray:.")
        log.warning("%s; it waits until one is added", text)

    @property
    def _options(self) -> dict[str, Any]:
        """What one task needs."""
        return {"num_cpus": 1, **{key: self.job.settings[key] for key in OPTIONS if key in self.job.settings}}

    def close(self) -> None:
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _late(self, ray: Any, running: Mapping[object, _Running], passed_s: float) -> list[tuple[object, str]]:
        """The candidates whose time is over, ended. Waiting for a place on the cluster does not count."""
        late = []
        for stream, known in running.items():
            if known.process is None:
                continue
            known.spent_s += passed_s
            if self.job.limit_s is not None and known.spent_s > self.job.limit_s:
                node, process = known.process
                if node == ray.get_runtime_context().get_node_id():  # one that is stopped answers no cancelling
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                with suppress(ray.exceptions.RayError):
                    ray.cancel(stream, force=True)
                late.append((stream, out_of_time(self.job.limit_s)))
        return late


def _next(ray: Any, stream: Any, known: _Running) -> tuple[Trained, bytes | None] | str | None:
    """What a candidate says next: None where it has begun, else what came of it, or why its worker was lost."""
    try:
        found = pickle.loads(ray.get(next(stream)))
    except ray.exceptions.RayError as error:
        return _first_line(error)
    except StopIteration:
        return "it ended without an answer"
    if known.process is None:
        known.process = found
        return None
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _OwnCluster:
    """A cluster that this process starts on the loopback interface, and the guard that ends what it leaves behind."""

    def __init__(self, ray: ModuleType):
        self._ray = ray
        self._switch = os.environ.get(CLUSTER_SWITCH)
        self._guard: subprocess.Popen | None = None

    def start(self, given: Mapping[str, object]) -> None:
        before = _children()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", process_guard.__file__, str(os.getpid()), *map(str, before)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        loopback = "_node_ip_address" not in given
        constants = getattr(getattr(self._ray, "_private", None), "ray_constants", None)
        chosen = getattr(constants, "ENABLE_RAY_CLUSTER", None)
        if loopback:
            os.environ[CLUSTER_SWITCH] = "0"
            if constants is not None:
                constants.ENABLE_RAY_CLUSTER = False  # where ray was imported before
        try:
            self._ray.init(**{"address": "local", **({"_node_ip_address": LOOPBACK} if loopback else {}), **given})
        finally:
            if loopback and constants is not None:
                constants.ENABLE_RAY_CLUSTER = chosen
        address = self._ray.util.get_node_ip_address()
        if loopback and address != LOOPBACK:
            log.warning("this version of Ray listens on %s, not on the loopback interface alone", address)
        roots = _children() - before - {self._guard.pid}
        assert self._guard.stdin is not None, "a pipe"
        self._guard.stdin.write(" ".join(map(str, roots)).encode() + b"\n")
        self._guard.stdin.flush()

    def close(self) -> None:
        if self._switch is None:
            os.environ.pop(CLUSTER_SWITCH, None)
        else:
            os.environ[CLUSTER_SWITCH] = self._switch
        if self._guard is not None:
            assert self._guard.stdin is not None, "a pipe"
            with suppress(OSError):  # the guard was killed
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None


def _children() -> set[int]:
    return {pid for pid, (parent, _) in process_guard.processes().items() if parent == os.getpid()}


def _candidate(
    functions: bytes, weights: bytes, packed: bytes, task: Task, repair: bytes | None, settings: dict[str, object]
) -> Iterator[bytes]:
    """One candidate, in a Ray worker: first where it runs, then what came of it. Pickled here, so that Ray need not
    know our types."""
    import ray

    yield pickle.dumps((ray.get_runtime_context().get_node_id(), os.getpid()))
    _settle(settings)
    try:
        unpacked = pickle.loads(functions)
    except BaseException as error:  # whatever importing the user's modules raises there
        reason = said("the functions do not load on the cluster", error)
        yield pickle.dumps((Trained(error=f"{reason}; see Ray's runtime_env"), None))
        return
    repairs = None if repair is None else pickle.loads(repair)
    yield pickle.dumps(train_packed(unpacked, from_bytes(weights), packed, task, repairs))


def _observed(dense: bytes, shard: bytes, settings: dict[str, object]) -> bytes:
    """What one shard gives, in a Ray worker."""
    _settle(settings)
    return observe_packed(dense, shard)


def _settle(settings: dict[str, object]) -> None:
    """Compute in this worker as the search does."""
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    put_settings(settings, "as in the search")


def of_job(job: Job) -> OnRay:
    """Workers for a search."""
    return OnRay(job)
