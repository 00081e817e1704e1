"""What users call: build a table, make a model of a network, measure one whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxprune.io.printed_text import terminal
from fxprune.latency.backends.protocol import Backend
from fxprune.latency.backends.registry import find
from fxprune.latency.device import Setting
from fxprune.latency.errors import ForeignTable, LatencyError
from fxprune.latency.predict import LatencyModel, MeasuredLatency, measured_model, model_of
from fxprune.latency.sampling import DEFAULT, Limits, Network, Report, build
from fxprune.latency.table import LatencyTable
from fxprune.latency.timing import Timing
from fxprune.problem.width_grids import default_step
from passes import Coupling, capture, couple

log = logging.getLogger(__name__)

Measure = Callable[[fx.GraphModule, Any], float]
Grid = Mapping[str, Sequence[int]]


def default_path(setting: Setting) -> Path:
    """Where tables are kept unless a path is given: one file a setting, shared by all networks and runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fxprune" / "latency" / f"{setting.slug}.json"


def width_grid(coupling: Coupling, step: int | None = None, least: int | None = None) -> dict[str, list[int]]:
    """For each group the widths that a search may give it: multiples of `step` from `least` on, and its full size.

    step: default 8, less in narrow groups; least: default the step.
    """
    grid = {}
    for name, size in coupling.widths.items():
        own = step or default_step(size)
        first = -(-(least or own) // own) * own
        grid[name] = [*range(first, size, own), size]
    return grid


def build_table(
    model: nn.Module,
    example_inputs: object,
    *,
    backend: str = "onnxruntime",
    threads: int = 1,
    measure: Measure | None = None,
    device: str = "cpu",
    path: str | Path | None = None,
    step: int | str | None = None,
    least: int | None = None,
    limits: Limits = DEFAULT,
    progress: bool = False,
) -> LatencyTable:
    """Measure on this device (or through `measure`) what is needed to predict the network at any widths on the grid.

    path: where the table is kept (default: `default_path`); what it holds already is not measured again. step: the
    grid; "auto" samples it as finely as steps can be found (a step of 4). Returns the whole table of that file.
    Raises TableError where the file at `path` cannot be used.
    """
    gm, coupling = _coupled(model, example_inputs)
    runs_on = find(backend, threads, device, measure)
    network = Network(gm, coupling, example_inputs, width_grid(coupling, _grid_step(step), least))
    return _built(network, runs_on, Path(path) if path is not None else default_path(runs_on.setting), limits, progress)


def latency_model(
    model: nn.Module,
    example_inputs: object,
    *,
    table: LatencyTable | str | Path | None = None,
    foreign: bool = False,
    backend: str = "onnxruntime",
    threads: int = 1,
    measure: Measure | None = None,
    device: str = "cpu",
    step: int | str | None = None,
    least: int | None = None,
    limits: Limits = DEFAULT,
    progress: bool = False,
) -> LatencyModel:
    """A latency resource for `netadapt(..., resources=[...])`: predicts any widths, measures whole networks.

    table: the file or table to use and complete. foreign: it was measured elsewhere and is taken as it is, with its own
    setting; nothing is measured here unless `measure` reaches that device.
    """
    gm, coupling = _coupled(model, example_inputs)
    return latency_resource(
        gm, coupling, example_inputs, table=table, foreign=foreign, backend=backend, threads=threads, measure=measure,
        device=device, step=step, least=least, limits=limits, progress=progress,
    )  # fmt: skip


def latency_resource(
    gm: fx.GraphModule,
    coupling: Coupling,
    example_inputs: object,
    *,
    table: LatencyTable | str | Path | None = None,
    foreign: bool = False,
    backend: str = "onnxruntime",
    threads: int = 1,
    measure: Measure | None = None,
    device: str = "cpu",
    step: int | str | None = None,
    least: int | None = None,
    limits: Limits | Mapping[str, Any] = DEFAULT,
    progress: bool = True,
) -> LatencyModel:
    """As `latency_model`, for a coupled network; a configuration's table `latency:` has these names as its keys."""
    limits = limits if isinstance(limits, Limits) else Limits(**limits)
    network = Network(gm, coupling, example_inputs, width_grid(coupling, _grid_step(step), least))
    if foreign:
        return _elsewhere(network, table, measure, device)
    runs_on = find(backend, threads, device, measure)
    if isinstance(table, LatencyTable):
        found = build(network, runs_on, _of_setting(table, runs_on.setting), limits=limits)
    else:
        path = Path(table) if table is not None else default_path(runs_on.setting)
        found = _built(network, runs_on, path, limits, progress)
    return measured_model(network, found, runs_on)


def measure_latency_ms(
    gm: fx.GraphModule,
    example_inputs: object,
    *,
    backend: str = "onnxruntime",
    threads: int = 1,
    measure: Measure | None = None,
    device: str = "cpu",
    repeats: int = 25,
) -> Timing:
    """How long a whole network takes: the median of its runs, with its 95 % interval."""
    gm = gm if isinstance(gm, fx.GraphModule) else capture(gm, example_inputs)
    return find(backend, threads, device, measure).time(gm, example_inputs, None, repeats)


def _coupled(model: nn.Module, example_inputs: object) -> tuple[fx.GraphModule, Coupling]:
    gm = model if isinstance(model, fx.GraphModule) else capture(model, example_inputs)
    return gm, couple(gm, example_inputs)


def _grid_step(step: int | str | None) -> int | None:
    if step == "auto":
        return 4
    if step is None or (isinstance(step, int) and step > 0):
        return step
    raise LatencyError(f'latency: step={step!r}; expected a number of channels, or "auto"')


def _built(network: Network, backend: Backend, path: Path, limits: Limits, progress: bool) -> LatencyTable:
    table = LatencyTable.load(path, backend.setting) if path.exists() else LatencyTable(backend.setting)
    with _bar(progress, f"latency table ({backend.setting.backend})") as report:
        return build(network, backend, table, path=path, limits=limits, report=report)


def _of_setting(table: LatencyTable, setting: Setting) -> LatencyTable:
    from fxprune.latency.table import require_setting

    require_setting(table.setting, setting, "the given table")
    return table


def _elsewhere(
    network: Network, table: LatencyTable | str | Path | None, measure: Measure | None, device: str
) -> LatencyModel:
    if table is None:
        raise ForeignTable("latency: foreign=True needs the table that was measured elsewhere (table=FILE)")
    found = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
    if measure is not None:
        return measured_model(network, found, find(measure=measure, device=device))
    log.warning(
        "latency: the table was measured on %s; nothing is measured here, so its predictions are taken as they are",
        found.setting,
    )
    return model_of(network, found)


@contextmanager
def _bar(shown: bool, text: str) -> Iterator[Report | None]:
    """A progress bar on standard error that appears with the first measurement."""
    if not shown:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doubt]}"),
    )
    with Progress(*columns, console=terminal(stderr=True), transient=True) as bar:
        task: Any = None

        def report(done: int, most: int, uncertainty: float) -> None:
            nonlocal task
            task = bar.add_task(text, total=most, doubt="") if task is None else task
            doubt = f"good to {100 * uncertainty:.1f} %" if uncertainty < 1 else ""
            bar.update(task, completed=done, total=most, doubt=doubt)

        yield report


__all__ = [
    "MeasuredLatency", "build_table", "default_path", "latency_model", "latency_resource", "measure_latency_ms",
    "width_grid",
]  # fmt: skip
