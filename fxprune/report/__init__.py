"""`fxprune report`: a search, finished or not, as one HTML page that needs nothing else to be read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fxprune.errors import JournalError
from fxprune.io.storage import write_bytes
from fxprune.journal.read_run import Run, read_run, run_from
from fxprune.journal.run_identity import details_of, identity_of
from fxprune.report.page import GENERATOR, page_of
from fxprune.search.result import NetAdaptResult

__all__ = ["page_of", "write_report", "write_result"]


def write_report(workdir: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of the search in `workdir` to `out` (`report.html` beside its journal), and return where.

    The folder is read, not locked: a search that runs may be looked at. Raises JournalError where there is none or
    where `out` is a file that is no report of fxprune (`overwrite` insists), and ModuleNotFoundError where matplotlib
    is missing.
    """
    run = read_run(workdir)
    return _write(run, Path(out) if out is not None else run.folder / "report.html", overwrite)


def write_result(result: NetAdaptResult, out: str | Path, overwrite: bool = False) -> Path:
    """As `write_report`, for a result in memory: `result.report(out)`."""
    if result.problem is None:
        raise JournalError("report: this result does not hold what was searched; write_report reads a workdir.")
    identity, details = identity_of(result.problem), details_of(result.problem)
    recorded = json.loads(json.dumps(result.to_dict()))
    run = run_from(Path(out).parent, identity, details, result.journal, result.rounds, (), recorded, result.baseline)
    return _write(run, Path(out), overwrite)


def _write(run: Run, path: Path, overwrite: bool) -> Path:
    if not overwrite and os.path.lexists(path) and not _is_report(path):
        raise JournalError(
            f"{path} exists, and is no report of fxprune; nothing was written. Choose another name, or insist with "
            "overwrite=True (--overwrite on the command line)."
        )
    write_bytes(path, page_of(run).encode())
    return path


def _is_report(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(1000)
