"""Backends by name: those that are built in, those that users register, and functions that measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxprune.errors import ConfigError
from fxprune.latency.backends.callback import Callback
from fxprune.latency.backends.protocol import Backend
from fxprune.latency.errors import BackendError
from fxprune.registries import BACKENDS
from passes.arguments import integer, quoted


def find(
    backend: Any = "onnxruntime", threads: int = 1, device: str = "cpu", measure: Callable[..., float] | None = None
) -> Backend:
    """The backend of that name; or a backend itself; or the one behind `measure`.

    What is registered is called with the number of threads and the device, and gives a backend, or only a function
    ``(gm, example_inputs) -> milliseconds``.
    """
    if measure is not None:
        if not callable(measure):
            raise BackendError(f"measure is a {type(measure).__name__}; expected a function (gm, example_inputs) -> ms")
        return Callback(measure, "" if device == "cpu" else device)
    threads = integer(threads, "threads", least=1, error=BackendError)
    if not isinstance(backend, str) and hasattr(backend, "setting"):
        return backend
    try:
        made = BACKENDS.call(backend, threads, device)
    except ConfigError as error:
        raise BackendError(str(error)) from None
    if hasattr(made, "setting"):
        return made
    if not callable(made):
        raise BackendError(
            f"backend {quoted(backend)}: its maker gave a {type(made).__name__}; expected a backend, or a function "
            "(gm, example_inputs) -> ms"
        )
    return Callback(made, str(backend) if isinstance(backend, str) else "")
