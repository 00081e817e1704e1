"""Backends by name."""

from __future__ import annotations

from collections.abc import Callable

from fxprune.latency.backends.callback import Callback
from fxprune.latency.backends.compiled import Compiled
from fxprune.latency.backends.eager import Eager
from fxprune.latency.backends.onnx_runtime import OnnxRuntime
from fxprune.latency.backends.protocol import Backend
from fxprune.latency.errors import BackendError


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
        return OnnxRuntime(threads)
    raise BackendError(f"no latency backend is called {backend!r}; there are eager, compile and onnxruntime")
