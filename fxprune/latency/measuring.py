"""What users call: build a table, make a model of a network, measure one whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from torch import fx, nn

from fxprune.config.rules import WrongEntry, entries
from fxprune.config.tables import LATENCY
from fxprune.errors import FxpruneError
from fxprune.io.lent import lent
from fxprune.io.printed_text import terminal
from fxprune.latency.backends.protocol import Backend
from fxprune.latency.backends.registry import find
from fxprune.latency.device import Setting
from fxprune.latency.errors import ForeignTable, LatencyError
from fxprune.latency.predict import LatencyModel, MeasuredLatency, measured_model, model_of
from fxprune.latency.sampling import DEFAULT, Limits, Network, Report, build
from fxprune.latency.table import LatencyTable, require_setting
from fxprune.latency.timing import Timing
from fxprune.problem.width_grids import default_step
from passes import Coupling, capture, couple
from passes.arguments import file_name, flag, integer
from passes.process.source_lines import said

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)
_KEYS = entries(LATENCY)

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


class On(TypedDict, total=False):
    """What runs a network, and where: the keywords of `find`, which has the defaults.

    backend: "onnxruntime", "eager", "compiled", one that is registered, or a backend itself. measure: a function of
    one's own, (gm, example_inputs) -> milliseconds, in the place of a backend; device: its name for tables.
    """

    backend: str | Backend
    threads: int
    measure: Measure | None
    device: str


class How(On, total=False):
    """What a table is measured for, beside `On`: the grid of widths, and how much may be spent.

    step: of the grid; "auto" samples it as finely as steps can be found (a step of 4). least: the narrowest width
    (default: the step). progress: a bar on standard error.
    """

    step: int | str | None
    least: int | None
    limits: Limits | Mapping[str, Any]
    progress: bool


def build_table(
    model: nn.Module, example_inputs: object, *, path: str | Path | None = None, **how: Unpack[How]
) -> LatencyTable:
    """Measure on this device (or through `measure`) what is needed to predict the network at any widths on the grid.

    path: where the table is kept (default: `default_path`); what it holds already is not measured again. how: see
    `How`. Returns the whole table of that file. Raises TableError where the file at `path` cannot be used.
    """
    job = _Job(*_coupled(model, example_inputs), example_inputs, how)
    return job.table(_named(path) or default_path(job.backend.setting))


def latency_model(
    model: nn.Module, example_inputs: object, *, table: LatencyTable | str | Path | None = None, foreign: bool = False,
    **how: Unpack[How],
) -> LatencyModel:  # fmt: skip
    """A latency resource for `netadapt(..., resources=[...])`: predicts any widths, measures whole networks.

    table: the file or table to use and complete. foreign: it was measured elsewhere and is taken as it is, with its own
    setting; nothing is measured here unless `measure` reaches that device. how: see `How`.
    """
    return latency_resource(*_coupled(model, example_inputs), example_inputs, table=table, foreign=foreign, **how)


def latency_resource(
    gm: fx.GraphModule, coupling: Coupling, example_inputs: object, *, table: LatencyTable | str | Path | None = None,
    foreign: bool = False, **how: Unpack[How],
) -> LatencyModel:  # fmt: skip
    """As `latency_model`, for a coupled network; a configuration's table `latency:` has these names as its keys."""
    job = _Job(gm, coupling, example_inputs, how)
    if not isinstance(table, LatencyTable):
        table = _named(table)
    if flag(foreign, "latency: foreign", LatencyError):
        return _elsewhere(job.network, table, how.get("measure"), how.get("device", "cpu"))
    if isinstance(table, LatencyTable):
        require_setting(table.setting, job.backend.setting, "the given table")
        found = build(job.network, job.backend, table, limits=job.limits)
    else:
        found = job.table(table or default_path(job.backend.setting))
    return measured_model(job.network, found, job.backend)


def _named(table: object) -> Path | None:
    what = "a LatencyTable, or the name of its file"
    return None if table is None else file_name(table, "latency: table", what, LatencyError)


def measure_latency_ms(gm: nn.Module, example_inputs: object, *, repeats: int = 25, **on: Unpack[On]) -> Timing:
    """How long a whole network takes: the median of its runs, with its 95 % interval. on: see `On`."""
    repeats = integer(repeats, "measure_latency_ms: repeats", least=1, error=LatencyError)
    gm = gm if isinstance(gm, fx.GraphModule) else capture(gm, example_inputs)
    _check(on)
    backend = find(**on)
    try:
        return backend.time(*lent(backend, gm, example_inputs), None, repeats)
    except FxpruneError:
        raise
    except Exception as error:  # the user's network, on inputs that it may not take
        raise LatencyError(f"measure_latency_ms: the network does not run on these inputs: {said(error)}") from error


class _Job:
    """A network to measure, and what `how` says of it."""

    def __init__(self, gm: fx.GraphModule, coupling: Coupling, example_inputs: object, how: How) -> None:
        unknown = how.keys() - How.__annotations__.keys()
        if unknown:
            raise TypeError(f"latency: there is no {sorted(unknown)[0]!r}; there are {', '.join(How.__annotations__)}")
        _check(how)
        grid = width_grid(coupling, _grid_step(how.get("step")), how.get("least"))
        self.network = Network(gm, coupling, example_inputs, grid)
        limits = how.get("limits", DEFAULT)
        self.limits = limits if isinstance(limits, Limits) else Limits(**limits)
        self.progress = how.get("progress", False)
        self._on: dict[str, Any] = {name: value for name, value in how.items() if name in On.__annotations__}

    @cached_property
    def backend(self) -> Backend:
        return find(**self._on)

    def table(self, path: Path) -> LatencyTable:
        """The table of that file, with what it lacks."""
        setting = self.backend.setting
        table = LatencyTable.load(path, setting) if path.exists() else LatencyTable(setting)
        with _bar(self.progress, f"latency table ({setting.backend})") as report:
            return build(self.network, self.backend, table, path=path, limits=self.limits, report=report)


def _check(how: Mapping[str, Any]) -> None:
    """Refuse what a configuration's table `latency:` refuses; null stands for what is left out."""
    try:
        _KEYS.read({name: v for name, v in how.items() if v is not None and not isinstance(v, Limits)})
    except WrongEntry as error:
        raise LatencyError(f"latency: {error}") from None


def _coupled(model: nn.Module, example_inputs: object) -> tuple[fx.GraphModule, Coupling]:
    gm = model if isinstance(model, fx.GraphModule) else capture(model, example_inputs)
    return gm, couple(gm, example_inputs)


def _grid_step(step: int | str | None) -> int | None:
    return 4 if isinstance(step, str) else step  # "auto", the one text that is let in


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
