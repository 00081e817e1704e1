"""Backends: what runs a network on a device so that it can be timed, whole or node by node.

A backend prepares a graph once and returns what runs it. Those that can tell how long each fx node took inside the
running network (`in_situ`) do so: caches, allocators and layouts are then as they are in use. The others time units as
small networks of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.latency.device import Setting, describe
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Pace, Reference, Timing, pace
from passes.stream.inference import as_arguments

Run = Callable[[], object]


@dataclass(frozen=True)
class Profile:
    """How long each fx node took in each run: ms (runs, nodes), with the pace of these runs.

    whole: the network without anyone looking into it, in units of the reference.
    """

    nodes: tuple[str, ...]
    ms: np.ndarray
    pace: Pace
    whole: Timing


class Backend(Protocol):
    """Runs and times graphs under one setting."""

    setting: Setting
    in_situ: bool

    def prepare(self, gm: nn.Module, example_inputs: Any) -> Run:
        """What runs `gm`, a graph or the module itself, once, in evaluation mode, on these inputs."""

    def time(self, gm: nn.Module, example_inputs: Any, reference: Reference | None = None, repeats: int = 15) -> Timing:
        """How long `gm` takes."""


@runtime_checkable
class InSitu(Protocol):
    """A backend that can tell the nodes of a running network apart."""

    def profile(self, gm: fx.GraphModule, example_inputs: Any, reference: Reference | None, repeats: int) -> Profile:
        """How long each node takes while the whole of `gm` runs."""


class Timed:
    """What backends share that run graphs in this process."""

    setting: Setting
    in_situ = False

    def prepare(self, gm: nn.Module, example_inputs: Any) -> Run:
        raise NotImplementedError

    def time(self, gm: nn.Module, example_inputs: Any, reference: Reference | None = None, repeats: int = 15) -> Timing:
        return self.pace(self.prepare(gm, example_inputs), reference, repeats).timing()

    def pace(self, run: Run, reference: Reference | None = None, repeats: int = 15) -> Pace:
        """`timing.pace` with this backend's number of threads."""
        return pace(run, reference, repeats=repeats, one_thread=self.setting.threads == 1)


class Eager(Timed):
    """PyTorch as it is, on the device of the graph's parameters."""

    in_situ = True

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        self.setting = Setting("eager", torch.__version__, threads, describe(device))
        # Between nodes of a CUDA graph one would have to wait for the device, which changes what is timed.
        self.in_situ = device == "cpu"

    def prepare(self, gm: nn.Module, example_inputs: Any) -> Run:
        gm.eval()
        (args, kwargs), threads, wait = _called(gm, example_inputs), self.setting.threads, _waiter(gm)

        def run() -> None:
            with torch_threads(threads), torch.inference_mode():
                gm(*args, **kwargs)
            wait()

        return run

    def profile(self, gm: fx.GraphModule, example_inputs: Any, reference: Reference | None, repeats: int) -> Profile:
        gm.eval()
        clock = time.thread_time if self.setting.threads == 1 else time.perf_counter
        inputs, stopwatch, rows = _placed(gm, example_inputs), _Stopwatch(gm, clock), []

        def run() -> None:
            with torch_threads(self.setting.threads), torch.inference_mode():
                stopwatch.run(*inputs, enable_io_processing=False)
            rows.append(stopwatch.taken_ms)

        whole = self.pace(self.prepare(gm, example_inputs), reference, repeats)
        found = self.pace(run, reference, repeats)
        kept = rows[-len(found.times_ms) :]
        ms = np.array([[row[name] for name in kept[0]] for row in kept])
        return Profile(tuple(kept[0]), ms, found, whole.relative(whole.times_ms))


class _Stopwatch(fx.Interpreter):
    """Runs a graph and times every node."""

    def __init__(self, gm: fx.GraphModule, clock: Callable[[], float]) -> None:
        super().__init__(gm)
        self.clock = clock
        self.extra_traceback = False
        self.taken_ms: dict[str, float] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.taken_ms = {}
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        start = self.clock()
        result = super().run_node(n)
        self.taken_ms[n.name] = (self.clock() - start) * 1e3
        return result


class Compiled(Timed):
    """torch.compile with its default settings; each shape is compiled for itself, which takes seconds."""

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        self.setting = Setting("compile", torch.__version__, threads, describe(device))

    def prepare(self, gm: nn.Module, example_inputs: Any) -> Run:
        gm.eval()
        (args, kwargs), threads, wait = _called(gm, example_inputs), self.setting.threads, _waiter(gm)
        compiled = torch.compile(gm, dynamic=False)

        def run() -> None:
            with torch_threads(threads), torch.no_grad():
                compiled(*args, **kwargs)
            wait()

        try:
            run()
        except Exception as error:  # dynamo and inductor have errors of their own, and those of the C++ compiler
            raise BackendError(f"torch.compile cannot run the network: {str(error).splitlines()[0]}") from error
        return run


class Callback:
    """Another device behind a function: `measure(gm, example_inputs)` returns milliseconds.

    The median of three calls is taken. `device` names it in tables.
    """

    in_situ = False

    def __init__(self, measure: Callable[[Any, Any], float], device: str = "") -> None:
        name = (
            device or f"{getattr(measure, '__module__', '')}.{getattr(measure, '__qualname__', type(measure).__name__)}"
        )
        self.setting = Setting("measure", "", 0, {"processor": name})
        self.measure = measure

    def time(self, gm: nn.Module, example_inputs: Any, reference: Reference | None = None, repeats: int = 15) -> Timing:
        gm.eval()
        taken = [self._checked(self.measure(gm, example_inputs)) for _ in range(3)]
        return Timing(statistics.median(taken), min(taken), max(taken), len(taken))

    def prepare(self, gm: nn.Module, example_inputs: Any) -> Run:
        return lambda: self.measure(gm, example_inputs)

    def _checked(self, value: Any) -> float:
        try:
            ms = float(value)
        except (TypeError, ValueError):
            ms = float("nan")
        if not (np.isfinite(ms) and ms > 0):
            raise BackendError(
                f"measure(gm, example_inputs) returned {value!r}; expected milliseconds, a number above 0"
            )
        return ms


def find(
    backend: str = "onnxruntime", threads: int = 1, device: str = "cpu", measure: Callable[..., float] | None = None
) -> Backend:
    """The backend of that name: eager, compile, onnxruntime; or the one behind `measure`."""
    if measure is not None:
        if not callable(measure):
            raise BackendError(f"measure is a {type(measure).__name__}; expected a function (gm, example_inputs) -> ms")
        return Callback(measure, "" if device == "cpu" else device)
    if threads < 1:
        raise BackendError(f"threads={threads}; expected at least one")
    if backend == "eager":
        return Eager(threads, device)
    if backend == "compile":
        return Compiled(threads, device)
    if backend == "onnxruntime":
        from fxprune.latency.onnx_backend import OnnxRuntime

        return OnnxRuntime(threads)
    raise BackendError(f"no latency backend is called {backend!r}; there are eager, compile and onnxruntime")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run the block with that many threads inside torch's operators."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _placed(gm: fx.GraphModule, example_inputs: Any) -> tuple[Any, ...]:
    device = next((p.device for p in gm.parameters()), torch.device("cpu"))
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), as_arguments(example_inputs, gm))


def _called(network: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of a graph, or of a module as its own forward takes them."""
    if isinstance(network, fx.GraphModule):
        return _placed(network, example_inputs), {}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    given = pytree.tree_map_only(Tensor, lambda t: t.to(device), example_inputs)
    if isinstance(given, Mapping):
        return (), dict(given)
    return tuple(given) if isinstance(given, tuple | list) else (given,), {}


def _waiter(gm: nn.Module) -> Callable[[], None]:
    kind = next((p.device.type for p in gm.parameters()), "cpu")
    return torch.cuda.synchronize if kind == "cuda" else (lambda: None)
