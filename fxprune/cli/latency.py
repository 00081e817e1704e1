"""`fxprune latency build | show | compare`: tables from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune.io.printed_text import echo, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from fxprune.latency.predict import LatencyModel
    from fxprune.latency.table import Entry, LatencyTable

app = typer.Typer(
    name="latency",
    help="Measure what the layers of a network cost on this device, and look at what was measured.",
    no_args_is_help=True,
)

Model = Annotated[
    str, typer.Argument(help="torchvision:NAME, timm:NAME, hf:FOLDER, package.module:function, file.py:function")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help="shape of one input, as 1,3,224,224, once for each input", show_default=False),
]
Tables = Annotated[list[Path], typer.Argument(help="table files")]


@app.command()
def build(
    model: Model,
    input: Inputs = None,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, onnxruntime-int8, openvino, executorch, compile, eager")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="threads inside an operator")] = 1,
    table: Annotated[
        Path | None, typer.Option(help="file to complete; left out: the user's cache, one file a device and backend")
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(help='distance of the widths that a search may use, or "auto": as the measured cost has steps'),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="share to which whole networks should be predicted")] = 0.02,
    networks: Annotated[int, typer.Option(help="networks that may be measured at most")] = 40,
) -> None:
    """Measure what a table lacks to predict a network at any widths; what it has is not measured again."""
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.cli.inputs import example_inputs, shapes_of
        from fxprune.cli.sources import load_model
        from fxprune.latency.backends.registry import find
        from fxprune.latency.measuring import build_table, default_path, latency_model
        from fxprune.latency.sampling import Limits

        network = load_model(model).eval()
        shapes = shapes_of(input or (), model, network)
        inputs = example_inputs(shapes.texts)
        echo(f"inputs: {shapes}", err=True)
        path = table or default_path(find(backend, threads).setting)
        grid = int(step) if step is not None and step.isdigit() else step
        made = build_table(
            network, inputs, backend=backend, threads=threads, path=path, step=grid,
            limits=Limits(tolerance=tolerance, networks=networks), progress=True,
        )  # fmt: skip
        console = terminal()
        size = f"{len(made)} units, {made.samples} samples"
        console.print(f"{path}: {size}, {made.setting}", soft_wrap=True, markup=False)
        predictor = latency_model(network, inputs, table=path, backend=backend, threads=threads, step=grid)
        console.print(by_unit(predictor))


@app.command()
def show(
    tables: Tables,
    model: Annotated[str | None, typer.Option(help="predict this model from the table, unit by unit")] = None,
    input: Inputs = None,
) -> None:
    """Print what tables hold: for each unit the widths, the times and the noise; several files are read as one."""
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.cli.inputs import example_inputs, shapes_of
        from fxprune.cli.sources import load_model
        from fxprune.latency.measuring import latency_model
        from fxprune.latency.table import merge_files

        found, console = merge_files(tables), terminal()
        console.print(str(found.setting), soft_wrap=True, markup=False)
        if model is None:
            console.print(contents(found))
            return
        network = load_model(model).eval()
        shapes = shapes_of(input or (), model, network)
        console.print(f"inputs: {shapes}", soft_wrap=True, markup=False)
        inputs = example_inputs(shapes.texts)
        console.print(by_unit(latency_model(network, inputs, table=found, foreign=True)))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="a table: the file that `latency build` wrote")],
    second: Annotated[Path, typer.Argument(help="the table to compare with it")],
) -> None:
    """Print how much slower or faster the units of one table are in another: two devices, backends or versions."""
    from fxprune.cli.errors import reported_errors

    with reported_errors():
        from fxprune.latency.table import LatencyTable

        tables = LatencyTable.load(first), LatencyTable.load(second)
        console = terminal()
        for name, table in zip((first, second), tables, strict=True):
            console.print(f"{name.name}: {table.setting}", soft_wrap=True, markup=False)
        console.print(comparison(*tables))


def contents(table: LatencyTable) -> Table:
    """A row for each unit of a table."""
    from rich.table import Table

    rows = Table("unit", "samples", "widths", "ms", "noise")
    for key, entry in sorted(table.entries.items(), key=lambda item: -_slowest(item[1])):
        if not entry.samples:
            continue
        columns = zip(*(sample.widths for sample in entry.samples), strict=True)
        widths = ", ".join(f"{min(column)} to {max(column)}" for column in columns)
        times = [sample.timing.ms for sample in entry.samples]
        noise = sorted(sample.timing.noise for sample in entry.samples)[len(times) // 2]
        rows.add_row(key, str(len(times)), widths, f"{min(times):.4g} to {max(times):.4g}", f"{100 * noise:.1f} %")
    return rows


def _slowest(entry: Entry) -> float:
    return max((sample.timing.ms for sample in entry.samples), default=0.0)


def by_unit(model: LatencyModel) -> Table:
    """A row for each unit of a network, with the sum below."""
    from rich.table import Table

    total = model.predict_ms()
    rows = Table("first node", "unit", "ms", "share", show_footer=True)
    for name, key, ms in model.by_unit():
        rows.add_row(name, key, f"{ms:.4f}", f"{100 * ms / total:.1f} %")
    rows.columns[0].footer, rows.columns[2].footer = "whole network", f"{total:.4f}"
    return rows


def comparison(first: LatencyTable, second: LatencyTable) -> Table:
    """For each unit that both have, the time at the first one's widths in both, and the second over the first."""
    import numpy as np
    from rich.table import Table

    from fxprune.latency.sampling import surface_of

    rows = Table("unit", "first ms", "second ms", "second / first")
    ratios = []
    for key, entry in first.entries.items():
        if not entry.samples or not second.entries.get(key, type(entry)()).samples:
            continue
        points = np.array([sample.widths for sample in entry.samples], dtype=np.int64)
        here, there = (surface_of(table, key).ms(points.reshape(len(points), -1)) for table in (first, second))
        ratio = float(np.median(there / here))
        ratios.append(ratio)
        rows.add_row(key, f"{np.median(here):.4g}", f"{np.median(there):.4g}", f"{ratio:.2f}")
    rows.caption = (
        f"{len(ratios)} units in both, median ratio {np.median(ratios):.2f}" if ratios else "no unit is in both tables"
    )
    return rows
