"""Another device behind a function of the user."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from fxprune.io.lent import lent
from fxprune.latency.backends.protocol import Run
from fxprune.latency.device import Setting
from fxprune.latency.errors import BackendError
from fxprune.latency.timing import Reference, Timing
from passes.process.source_lines import said


class Callback:
    """Another device behind a function: `measure(gm, example_inputs)` returns milliseconds.

    It is called with networks of other widths, with single units of the network, and with a graph of one activation
    and no weights, which costs what any call does. The median of three calls is taken. `device` names it in tables.
    Each call gets a copy of the network and of the inputs, which it may change.
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
        taken = [self._ms(gm, example_inputs) for _ in range(3)]
        return Timing(statistics.median(taken), min(taken), max(taken), len(taken))

    def prepare(self, gm: nn.Module, example_inputs: object) -> Run:
        return lambda: self._ms(gm, example_inputs)

    def _ms(self, gm: nn.Module, example_inputs: object) -> float:
        try:
            value: Any = self.measure(*lent(self.measure, gm, example_inputs))
        except Exception as error:  # the user's own function
            raise BackendError(
                f"measure(gm, example_inputs) failed: {said(error)}. It is called with parts of the network as well, "
                "and with a graph that has no weights"
            ) from error
        try:
            ms = float(value)
        except (TypeError, ValueError):
            ms = float("nan")
        if not (np.isfinite(ms) and ms > 0):
            raise BackendError(
                f"measure(gm, example_inputs) returned {value!r}; expected milliseconds, a number above 0"
            )
        return ms
