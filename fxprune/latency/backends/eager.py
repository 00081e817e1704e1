"""PyTorch as it is: whole networks, and every node timed by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.latency.backends.protocol import OnDevice, Profile, Run, called, placed, torch_threads
from fxprune.latency.timing import Reference


class Eager(OnDevice):
    """PyTorch as it is, on the device that is named, which holds the network."""

    in_situ = True

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        super().__init__("eager", threads, device)
        # Between nodes of a CUDA graph one would have to wait for the device, which changes what is timed.
        self.in_situ = self.device.type == "cpu"

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        gm.eval()
        self.check_held(gm)
        (args, kwargs), threads = called(gm, example_inputs, self.device), self.setting.threads

        def run() -> None:
            with torch_threads(threads), torch.inference_mode():
                gm(*args, **kwargs)
            self.wait()

        return run

    def profile(self, gm: fx.GraphModule, example_inputs: object, reference: Reference | None, repeats: int) -> Profile:
        gm.eval()
        clock = time.thread_time if self.setting.threads == 1 else time.perf_counter
        inputs, stopwatch, rows = placed(gm, example_inputs, self.device), _Stopwatch(gm, clock), []

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

    def run(self, *args: object, **kwargs: Any) -> Any:
        self.taken_ms = {}
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> object:
        start = self.clock()
        result = super().run_node(n)
        self.taken_ms[n.name] = (self.clock() - start) * 1e3
        return result
