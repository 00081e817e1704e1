"""Building a table: which networks, or which units, to measure next, until predictions are good enough.

Only widths on the search's grid are measured. The first networks spread over it evenly (a Latin hypercube: McKay,
Beckman and Conover, 1979), each next one is that of a random pool whose prediction is least certain; for a backend that
cannot tell nodes apart the same holds of single units. It ends when nine tenths of the pool should be predicted to
`tolerance` and the last networks, predicted before they were measured, were so too; or when no more may be measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.io.lent import lent
from fxprune.latency.backends.eager import Eager
from fxprune.latency.backends.protocol import Backend, InSitu, Timed, held_on
from fxprune.latency.surface import Surface, fit
from fxprune.latency.table import LatencyTable, Sample, Span
from fxprune.latency.timing import Reference, Timing, warm_up
from fxprune.latency.units import Coordinates, Unit, extract, units_of
from passes import Coupling, PruneChannels
from passes.analysis.cost_model import layer_of_call

log = logging.getLogger(__name__)

FIRST = 12  # networks before any is chosen by what is uncertain
LEAST_MS = 1e-4
CALL = "a call that computes next to nothing"
"""The key of what a run costs beside its units."""
_REFIT = 4  # networks between two fits
_POOL = 160

Grid = Mapping[str, Sequence[int]]
Report = Callable[[int, int, float], None]
"""Called after each measurement: how many are done, how many there may be, and the uncertainty (a share)."""


@dataclass(frozen=True)
class Limits:
    """When to stop: predictions good to `tolerance` (a share), or so many networks (points a unit) measured."""

    tolerance: float = 0.02
    networks: int = 40
    points: int = 8
    repeats: int = 16


DEFAULT = Limits()


@dataclass(frozen=True)
class Network:
    """What is measured: a coupled graph, its units, and the widths that a search may give its groups."""

    gm: fx.GraphModule
    coupling: Coupling
    example_inputs: Any
    grid: Grid

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return units_of(self.gm, self.coupling)

    @cached_property
    def layers(self) -> dict[str, str]:
        """For each unit, by its name, the layer whose parameters its first operator reads."""
        layers: dict[str, str] = {}
        for record in self.coupling.structure.records:
            layers.setdefault(record.node, layer_of_call(record))
        return {unit.name: layers.get(unit.name, unit.name) for unit in self.units}

    @cached_property
    def coordinates(self) -> Coordinates:
        return Coordinates(self.coupling, self.units)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(unit.key for unit in self.units))

    def at(self, widths: Mapping[str, int]) -> fx.GraphModule:
        """The network with the first units of each group kept."""
        plan = self.coupling.plan({name: tuple(range(width)) for name, width in widths.items()})
        return PruneChannels(plan)(self.gm).graph_module

    def points(self, vectors: Sequence[Mapping[str, int]]) -> dict[str, list[np.ndarray]]:
        """For each key an array (vectors, coordinates) for each unit that has it."""
        names = list(vectors[0])
        together = {name: np.array([vector[name] for vector in vectors]) for name in names}
        values, _ = self.coordinates.at(together)
        found: dict[str, list[np.ndarray]] = {}
        for unit, value in zip(self.units, values, strict=True):
            found.setdefault(unit.key, []).append(np.broadcast_to(value, (len(vectors), value.shape[1])))
        return found

    @property
    def ends(self) -> list[dict[str, int]]:
        """The network at its full and at its least widths."""
        return [{name: widths[end] for name, widths in self.grid.items()} for end in (-1, 0)]

    def spans(self, tolerance: float) -> dict[str, Span]:
        """For each key the box of widths that the grid can reach."""
        found = {}
        for key, arrays in self.points([*self.ends, *spread(self.grid, 64, 1)]).items():
            columns = np.concatenate(arrays).T
            axes = ((int(c.min()), int(c.max()), gcd(*(int(v) for v in c - c.min())) or 1) for c in columns)
            found[key] = Span(tuple(axes), tolerance)
        return found


def spread(grid: Grid, count: int, seed: int) -> list[dict[str, int]]:
    """`count` width vectors such that every group takes widths from all over its grid (a Latin hypercube)."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name, widths in grid.items():
        place = (rng.permutation(count) + rng.random(count)) / count
        columns[name] = [int(widths[int(p * len(widths))]) for p in place]
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def build(
    network: Network,
    backend: Backend,
    table: LatencyTable | None = None,
    *,
    path: str | Path | None = None,
    limits: Limits = DEFAULT,
    seed: int = 0,
    report: Report | None = None,
) -> LatencyTable:
    """Measure what the table lacks to predict any network on the grid; what it covers already is not measured again.

    path: the table is saved there after every measurement, so that an interrupted build goes on where it was.
    """
    building = _Building(network, backend, table or LatencyTable(backend.setting), path, limits, seed, report)
    if building.pending:
        in_situ = isinstance(backend, InSitu) and backend.in_situ
        supports = getattr(backend, "supports", lambda *_: True)
        if in_situ and supports(*lent(backend, network.gm, network.example_inputs)):
            building.whole_networks()
        else:
            building.single_units()
    return building.table


class _Building:
    """One build under way."""

    def __init__(
        self,
        network: Network,
        backend: Backend,
        table: LatencyTable,
        path: str | Path | None,
        limits: Limits,
        seed: int,
        report: Report | None,
    ) -> None:
        self.network, self.backend, self.path, self.limits = network, backend, path, limits
        self.table, self.report = table, report
        self.known = table.copy()
        self.fresh: list[tuple[str, tuple[int, ...], Timing]] = []  # in units of the reference
        spans = network.spans(limits.tolerance)
        self.pending = {key: span for key, span in spans.items() if not table.entry(key).covers(span)}
        self.seed = seed
        self.pool = spread(network.grid, _POOL, seed + 1)
        self.surfaces: dict[str, Surface] = {}
        self.missed: list[float] = []  # shares by which networks differed from what was expected of them
        self.reference: Reference | None = None

    # -- whole networks -------------------------------------------------------------------------------------------

    def whole_networks(self) -> None:
        """Profile whole networks, each giving a sample to every unit."""
        network, limits = self.network, self.limits
        self._start_reference(self.backend.prepare(*lent(self.backend, network.gm, network.example_inputs)))
        self._call_ms()
        first = [*network.ends, *spread(network.grid, FIRST - 2, self.seed)]
        often = {key: sum(unit.key == key for unit in network.units) for key in self.pending}
        done = min(self.table.entry(key).unfinished // often[key] for key in self.pending)
        uncertainty = np.inf
        while done < limits.networks:
            if done < len(first):
                widths = first[done]
            else:
                if not self.surfaces or done % _REFIT == 0:
                    self._fit()
                doubt, uncertainty = self._doubt()
                if uncertainty <= limits.tolerance and len(self.missed) >= _REFIT:
                    break
                widths = self.pool[int(np.argmax(doubt))]
            self._profile(widths)
            done += 1
            if self.report is not None:
                self.report(done, limits.networks, uncertainty)
        if done == len(first):  # so few were allowed, or they were enough
            self._fit()
            _, uncertainty = self._doubt()
        if self.report is not None:
            self.report(done, done, uncertainty)
        self._finish(uncertainty)

    def _profile(self, widths: Mapping[str, int]) -> None:
        """A sample for every unit: its share of the profile, of what the network takes when nobody looks into it."""
        network = self.network
        gm = network.at(widths)
        assert isinstance(self.backend, InSitu), "chosen for it"
        given = lent(self.backend, gm, network.example_inputs)
        profile = self.backend.profile(*given, self.reference, self.limits.repeats)
        column = {name: profile.ms[:, i] for i, name in enumerate(profile.nodes)}
        values, _ = network.coordinates.at(widths)
        profiled = []
        for unit in network.units:
            taken = sum((column[n] for n in unit.nodes if n in column), np.zeros(len(profile.ms)))
            profiled.append(profile.pace.part(np.maximum(taken, LEAST_MS)))
        call = self._call_ms() / self._quiet_ms
        if self.surfaces:
            expected = sum(self.surfaces[u.key].ms(value)[0] for u, value in zip(network.units, values, strict=True))
            self.missed.append(abs(expected / self._quiet_ms + call - profile.whole.ms) / profile.whole.ms)
        parts = brought_to(max(profile.whole.ms - call, 0.5 * profile.whole.ms), profiled)
        for unit, value, timing in zip(network.units, values, parts, strict=True):
            if unit.key in self.pending:
                self.fresh.append((unit.key, tuple(int(v) for v in value[0]), timing))
                point = np.asarray([value[0]])
                if unit.key in self.surfaces:
                    self.surfaces[unit.key] = self.surfaces[unit.key].with_point(point, max(timing.noise, 0.01))
        self._save()

    # -- single units ---------------------------------------------------------------------------------------------

    def single_units(self) -> None:
        """Time units one by one as networks of their own: for backends that see only whole networks."""
        network, limits = self.network, self.limits
        if isinstance(self.backend, Timed):
            eager = Eager(self.backend.setting.threads, str(held_on(network.gm)))
            self._start_reference(eager.prepare(network.gm, network.example_inputs))
        vectors = [*network.ends, *self.pool]
        points = network.points(vectors)
        call_ms = self._call_ms()
        for key in self.pending:
            for number in range(3):
                self._time_alone(key, points[key][0][number], vectors[number], call_ms)
        while True:
            self._fit()
            _, uncertainty = self._doubt()
            open_ = [key for key in self.pending if len(self.table.entry(key).samples) < limits.points]
            if uncertainty <= limits.tolerance or not open_:
                break
            # The unit that adds most to the doubt, at the point where it is least certain.
            pool = {key: arrays for key, arrays in network.points(self.pool).items() if key in open_}
            key = max(open_, key=lambda k: float(self._doubt_of(k, pool[k]).mean()))
            number = int(np.argmax(self.surfaces[key].spread(points[key][0])))
            if not self._time_alone(key, points[key][0][number], vectors[number], call_ms):
                break
        self._finish(uncertainty)

    def _time_alone(self, key: str, point: np.ndarray, widths: Mapping[str, int], call_ms: float) -> bool:
        """Time a unit at these widths of its network; False where that point is known."""
        if any(sample.widths == tuple(point) for sample in self.table.entry(key).samples):
            return False
        network = self.network
        unit = next(unit for unit in network.units if unit.key == key)
        gm, inputs = extract(network.at(widths), unit.nodes, network.example_inputs)
        found = self.backend.time(*lent(self.backend, gm, inputs), self.reference, self.limits.repeats)
        ms, low, high = (max(v - call_ms, LEAST_MS) for v in (found.ms, found.low, found.high))
        kept = Timing(ms, low, high, found.repeats)
        self._keep(key, tuple(int(v) for v in point), kept)
        self._save()
        if self.report is not None:
            self.report(len(self.fresh), self.limits.points * len(self.pending), np.inf)
        return True

    # -- both -----------------------------------------------------------------------------------------------------

    def _start_reference(self, run: Callable[[], object]) -> None:
        self.reference = Reference(run)
        warm_up(self.reference, one_thread=self.backend.setting.threads == 1)

    def _call_ms(self) -> float:
        """What a call costs in which next to nothing is computed: a unit alone pays it, and a whole network once."""
        if not self.table.entry(CALL).samples:
            graph = fx.Graph()
            graph.output(graph.call_function(torch.relu, (graph.placeholder("x"),)))
            gm = fx.GraphModule(torch.nn.Module(), graph)
            self._keep(CALL, (), self.backend.time(gm, (torch.zeros(1, 8),), self.reference, self.limits.repeats))
            self._save()
        return self.table.entry(CALL).samples[0].timing.low

    @property
    def _quiet_ms(self) -> float:
        return self.reference.quiet_ms if self.reference is not None else 1.0

    def _keep(self, key: str, widths: tuple[int, ...], timing: Timing) -> None:
        self.fresh.append((key, widths, timing.scaled(1 / self._quiet_ms)))

    def _save(self) -> None:
        quiet_ms = self._quiet_ms
        table = self.known.copy()
        for key, widths, timing in self.fresh:
            table.entry(key).samples.append(Sample.of(widths, timing.scaled(quiet_ms)))
        self.table = table
        if self.path is not None:
            table.save(self.path)

    def _fit(self) -> None:
        self.surfaces = {key: surface_of(self.table, key) for key in self.network.keys}

    def _doubt_of(self, key: str, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Milliseconds by which the units of a key may be off together, for each vector."""
        surface = self.surfaces[key]
        return sum(surface.ms(points) * surface.spread(points) for points in arrays)

    def _doubt(self) -> tuple[np.ndarray, float]:
        """For each vector of the pool the share by which it may be off; and what nine tenths of them stay under.

        The latter is no less than half of the last networks missed: a surface does not doubt its own form.
        """
        points = self.network.points(self.pool)
        total = sum(self.surfaces[key].ms(array) for key, arrays in points.items() for array in arrays)
        off = np.sqrt(sum(self._doubt_of(key, points[key]) ** 2 for key in self.pending)) / total
        missed = float(np.median(self.missed[-2 * _REFIT :])) if self.missed else 0.0
        return off, max(float(np.percentile(off, 90)), missed)

    def _finish(self, uncertainty: float) -> None:
        if np.isfinite(uncertainty) and uncertainty > self.limits.tolerance:
            log.info(
                "latency table: after all that may be measured, predictions are good to %.1f %% (asked: %.1f %%)",
                100 * uncertainty, 100 * self.limits.tolerance,
            )  # fmt: skip
        for key, span in self.pending.items():
            entry = self.table.entry(key)
            entry.spans.append(replace(span, samples=len(entry.samples)))
        if self.path is not None:
            self.table.save(self.path)


def brought_to(whole: float, parts: Sequence[tuple[Timing, bool]]) -> list[Timing]:
    """The parts, adding up to the whole: those that were always interrupted took no more than the others leave.

    >>> [t.ms for t in brought_to(10, [(Timing(4, 4, 4, 9), True), (Timing(8, 8, 8, 3), False)])]
    [4, 6.0]
    """
    known = sum(timing.ms for timing, spared in parts if spared)
    guessed = sum(timing.ms for timing, spared in parts if not spared)
    if guessed and whole / 10 < whole - known < guessed:
        return [timing if spared else timing.scaled((whole - known) / guessed) for timing, spared in parts]
    return [timing.scaled(whole / (known + guessed)) for timing, _ in parts]


def surface_of(table: LatencyTable, key: str) -> Surface:
    """The surface through a key's samples."""
    samples = table.entries[key].samples
    points = np.array([s.widths for s in samples], dtype=np.int64).reshape(len(samples), -1)
    return fit(points, np.array([s.timing.ms for s in samples]), np.array([s.timing.noise for s in samples]))
