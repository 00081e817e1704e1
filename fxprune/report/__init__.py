"""`fxprune report`: a search, finished or not, as one HTML page that needs nothing else to be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.errors import InputError, JournalError
from fxprune.io.storage import write_bytes
from fxprune.journal.read_run import Run, read_run, run_from
from fxprune.journal.run_identity import details_of, identity_of
from fxprune.problem.inputs import Analysed, analysed
from fxprune.report.network import network_page
from fxprune.report.page import GENERATOR, page_of
from fxprune.report.plots import tradeoff_figure
from fxprune.search.result import NetAdaptResult
from passes.arguments import choice, file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_of", "page_of", "write_analysis", "write_report", "write_result"]


def write_analysis(model: object, example_inputs: object, out: str | Path, overwrite: bool = False) -> Path:
    """Write a picture of a network: groups as colours over its layers, what is frozen and why; return where.

    `model` may be an `Analysed`, which is not analysed again. Raises JournalError where `out` is a file that is no page
    of fxprune (`overwrite` insists).
    """
    given = model if isinstance(model, Analysed) else analysed(model, example_inputs)
    return _put(network_page(given), _file(out), overwrite)


def write_report(workdir: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of the search in `workdir` to `out` (`report.html` beside its journal), and return where.

    The folder is read, not locked: a search that runs may be looked at. Raises JournalError where there is none or
    where `out` is a file that is no report of fxprune (`overwrite` insists), and ModuleNotFoundError where matplotlib
    is missing.
    """
    run = read_run(workdir)
    return _write(run, _file(out) if out is not None else run.folder / "report.html", overwrite)


def write_result(result: NetAdaptResult, out: str | Path, overwrite: bool = False) -> Path:
    """As `write_report`, for a result in memory: `result.report(out)`."""
    return _write(_run_of(result, _file(out).parent), _file(out), overwrite)


def figure_of(result: NetAdaptResult, resource: str | None = None) -> Figure:
    """The score over a resource, as a figure: `result.plot(resource)`. Raises InputError for one without a budget."""
    run = _run_of(result, Path())
    chosen = choice(resource, tuple(run.limits), "plot", InputError) if resource is not None else next(iter(run.limits))
    return tradeoff_figure(run, chosen)


def _run_of(result: NetAdaptResult, folder: Path) -> Run:
    if result.problem is None:
        raise JournalError("report: this result does not hold what was searched; write_report reads a workdir.")
    identity, details = identity_of(result.problem), details_of(result.problem)
    recorded = json.loads(json.dumps(result.to_dict()))
    return run_from(folder, identity, details, result.journal, result.rounds, (), recorded, result.baseline)


def _write(run: Run, path: Path, overwrite: bool) -> Path:
    _check(path, overwrite)  # before the page is drawn, which takes seconds
    return _put(page_of(run), path, overwrite)


def _check(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path) and not _is_report(path):
        raise JournalError(
            f"{path} exists, and is no report of fxprune; nothing was written. Choose another name, or insist with "
            "overwrite=True (--overwrite on the command line)."
        )


def _file(out: str | Path) -> Path:
    return file_name(out, "report", "the name of the page to write", JournalError)


def _put(page: str, path: Path, overwrite: bool) -> Path:
    _check(path, overwrite)
    write_bytes(path, page.encode())
    return path


def _is_report(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(1000)
