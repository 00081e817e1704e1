"""Another device behind a function of the user."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from fxprune.latency.backends.protocol import Run
from fxprune.latency.device import Setting
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Reference, Timing


class Callback:
    """Another device behind a function: `measure(gm, example_inputs)` returns milliseconds.

    The median of three calls is taken. `device` names it in tables.
    """

    in_situ = False

    def __init__(self, measure: Callable[[object, object], float], device: str = "") -> None:
        name = (
            device or f"{getattr(measure, '__module__', '')}.{getattr(measure, '__qualname__', type(measure).__name__)}"
        )
        self.setting = Setting("measure", "", 0, {"processor": name})
        self.measure = measure

    def time(
        self, gm: nn.Module, example_inputs: object, reference: Reference | None = None, repeats: int = 15
    ) -> Timing:
        gm.eval()
        taken = [self._checked(self.measure(gm, example_inputs)) for _ in range(3)]
        return Timing(statistics.median(taken), min(taken), max(taken), len(taken))

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
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
