"""`fxprune report`: a search, finished or not, as one HTML page that needs nothing else to be read."""

from __future__ import annotations

from pathlib import Path

from fxprune.report.page import page_of
from fxprune.runs import read_run
from fxprune.storage import write_bytes

__all__ = ["page_of", "write_report"]


def write_report(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the search in `workdir` to `out` (`report.html` beside its journal), and return where.

    The folder is read, not locked: a search that runs may be looked at. Raises JournalError where there is none, and
    ModuleNotFoundError where matplotlib is missing.
    """
    run = read_run(workdir)
    path = Path(out) if out is not None else run.folder / "report.html"
    write_bytes(path, page_of(run).encode())
    return path
