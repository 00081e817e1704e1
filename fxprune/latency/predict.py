"""The latency of a whole network from a table: a sum over its units, calibrated by what was measured whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from torch import nn

from fxprune.io.lent import lent
from fxprune.latency.backends.protocol import Backend, Timed
from fxprune.latency.errors import LatencyError, UncoveredTable
from fxprune.latency.sampling import CALL, Network, surface_of
from fxprune.latency.surface import Surface
from fxprune.latency.table import LatencyTable
from fxprune.latency.timing import Reference, Timing, warm_up
from passes.analysis.polynomial import Amount, Widths

Model = TypeVar("Model", bound="LatencyModel")
_PAID = 0.7  # a step: so much of its rise comes with its first grid point
_STEPS = (64, 32, 16, 8, 4, 2)


@dataclass(frozen=True)
class LatencyModel:
    """Predicts milliseconds for any widths; a Resource of the search.

    call_ms: what a run costs beside its units. ratio: measured over predicted, from the last network measured whole.
    """

    network: Network
    surfaces: Mapping[str, Surface]
    call_ms: float = 0.0
    ratio: float = 1.0
    name: str = "latency"
    unit: str = "ms"
    _known: dict[str, dict[tuple[int, ...], float]] = field(default_factory=dict, repr=False)

    def predict_ms(self, widths: Widths | None = None) -> Amount:
        """Milliseconds at these widths (groups left out: full size); an array where a width is an array."""
        values, scalar = self.network.coordinates.at(widths)
        total = np.full(max((len(v) for v in values), default=1), self.call_ms)
        present = self.network.coordinates.present(widths)
        for unit, points, there in zip(self.network.units, values, present, strict=True):
            ms = self._unit_ms(unit.key, points)
            total = total + (ms if there is None else ms * there)
        total = total * self.ratio
        return float(total[0]) if scalar else total.reshape(self.network.coordinates.shape(widths))

    value = predict_ms

    def _unit_ms(self, key: str, points: np.ndarray) -> np.ndarray:
        """A unit's milliseconds at (m, d) points; each point is worked out once."""
        known = self._known.setdefault(key, {})
        rows = list(map(tuple, points.tolist()))
        missing = [row for row in dict.fromkeys(rows) if row not in known]
        if missing:
            found = self.surfaces[key].ms(np.array(missing, dtype=np.int64).reshape(len(missing), -1))
            known.update(zip(missing, found.tolist(), strict=True))
        return np.array([known[row] for row in rows])

    def by_unit(self, widths: Mapping[str, int] | None = None) -> list[tuple[str, str, float]]:
        """Name, key and predicted milliseconds of each unit."""
        values, _ = self.network.coordinates.at(widths)
        present = self.network.coordinates.present(widths)
        return [
            (unit.name, unit.key, float(self._unit_ms(unit.key, points)[0]) * self.ratio)
            for unit, points, there in zip(self.network.units, values, present, strict=True)
            if there is None or there.all()
        ]

    def by_layer(self, widths: Mapping[str, int] | None = None) -> dict[str, float]:
        """Predicted milliseconds of each layer, {name: ms}, with what is fused with its operators."""
        total: dict[str, float] = {}
        for name, _, ms in self.by_unit(widths):
            layer = self.network.layers[name]
            total[layer] = total.get(layer, 0.0) + ms
        return total

    def calibrate(self: Model, measured_ms: float, widths: Widths | None = None) -> Model:
        """The model whose prediction at `widths` is what was measured there."""
        return self.calibrated(self.predict_ms(widths), measured_ms)

    def calibrated(self: Model, predicted: float, measured: float) -> Model:
        """The model whose prediction for the network in question would have been `measured`."""
        if not (np.isfinite(measured) and measured > 0 and predicted > 0):
            raise LatencyError(
                f"latency: predicted {predicted!r} ms and measured {measured!r} ms; expected numbers above 0"
            )
        return replace(self, ratio=self.ratio * measured / predicted)

    def steps(self) -> dict[str, int]:
        """For each group the width of the steps in which its cost grows, where it does.

        The largest step of 64, 32, ... whose rise comes (in the median, `_PAID` of it) with its first grid point:
        between two multiples there is nothing to save.
        """
        found = {}
        for name, widths in self.network.grid.items():
            step = step_of(np.asarray(widths), np.asarray(self.predict_ms({name: np.asarray(widths)})))
            if step is not None:
                found[name] = step
        return found


def step_of(widths: np.ndarray, ms: np.ndarray) -> int | None:
    """The largest step that is seen in a cost over ascending widths, or None.

    >>> widths = np.arange(8, 129, 8)
    >>> step_of(widths, 1 + np.ceil(widths / 32)), step_of(widths, 1 + widths / 32)
    (32, None)
    """
    least_rise = 0.002 * float(np.max(ms)) if len(ms) else 0.0
    at = dict(zip(widths.tolist(), ms.tolist(), strict=True))
    for step in _STEPS:
        paid = []
        for low in range(step, int(widths.max()) - step + 1, step):
            inside = [w for w in at if low < w < low + step]
            if low in at and low + step in at and inside:
                rise = at[low + step] - at[low]
                if rise > least_rise:
                    paid.append((at[min(inside)] - at[low]) / rise)
        if len(paid) >= 2 and np.median(paid) >= _PAID:
            return step
    return None


@dataclass(frozen=True)
class MeasuredLatency(LatencyModel):
    """A model with the device at hand: a MeasuredResource of the search.

    dense_ms: what the network as it is took when the model was made; whole networks are measured against it.
    """

    backend: Backend | None = None
    reference: Reference | None = None
    dense_ms: float = 0.0

    def measure(self, network: nn.Module, example_inputs: object) -> float:
        """Milliseconds of a whole network."""
        return self.timing(network, example_inputs).ms

    def timing(self, network: nn.Module, example_inputs: object, repeats: int = 40) -> Timing:
        """Milliseconds of a whole network, timed in turns with the dense one: their ratio outlives any drift."""
        assert self.backend is not None, "a MeasuredLatency is made with a backend"
        given = lent(self.backend, network, example_inputs)
        if self.reference is None or not isinstance(self.backend, Timed):
            return self.backend.time(*given, None, repeats)
        found = self.backend.pace(self.backend.prepare(*given), self.reference, repeats)
        return found.relative(found.times_ms).scaled(self.dense_ms)


def model_of(network: Network, table: LatencyTable) -> LatencyModel:
    """The model of a network from a table. Raises UncoveredTable naming units that the table lacks."""
    missing = [unit for unit in network.units if unit.key not in table.entries or not table.entries[unit.key].samples]
    if missing:
        listed = "; ".join(f"{unit.name}: {unit.key}" for unit in missing[:3])
        raise UncoveredTable(
            f"the latency table ({table.setting}) lacks {len(missing)} of the network's {len(network.units)} units: "
            f"{listed}{' ...' if len(missing) > 3 else ''}; build it for this network on that device."
        )
    call_ms = float(np.median([s.timing.ms for s in table.entries[CALL].samples])) if CALL in table.entries else 0.0
    return LatencyModel(network, {key: surface_of(table, key) for key in network.keys}, call_ms)


def measured_model(network: Network, table: LatencyTable, backend: Backend) -> MeasuredLatency:
    """The model of a network on the device at hand, calibrated by a measurement of the network as it is."""
    plain = model_of(network, table)
    reference, given = None, lent(backend, network.gm, network.example_inputs)
    if isinstance(backend, Timed):
        reference = Reference(backend.prepare(*given))
        warm_up(reference, one_thread=backend.setting.threads == 1)
    now = reference.quiet_ms if reference is not None else backend.time(*given).ms
    model = MeasuredLatency(
        network, plain.surfaces, plain.call_ms,
        backend=backend, reference=reference, dense_ms=now, _known=plain._known,
    )  # fmt: skip
    return model.calibrate(now)
