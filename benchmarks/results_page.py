"""The table of all figures in RESULTS.md: what was measured now replaces what was there, all else stays as it is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.report import table

PAGE = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- figures, written by python -m benchmarks -->", "<!-- end of the figures -->"
HEADER = ("benchmark", "figure", "found", "asked for", "met", "commit")


def cells(figure: Figure) -> list[str]:
    """A line of the table, but for the commit."""
    met = "" if figure.met is None else "yes" if figure.met else "NO"
    return [figure.benchmark, figure.figure, figure.found, figure.asked, met]


def updated(page: str, figures: Sequence[Figure], commit: str) -> str:
    """`page` with these figures in its table, measured on `commit`.

    Raises ValueError where the page has no place for the table.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}, between which the table stands")
    before, rest = page.split(BEGIN, 1)
    old, after = rest.split(END, 1)
    lines = [_cells_of(line) for line in old.splitlines() if line.startswith("| ")]
    rows = {(line[0], line[1]): line for line in lines[1:] if len(line) == len(HEADER) and set(line[0]) != {"-"}}
    rows |= {(figure.benchmark, figure.figure): [*cells(figure), commit] for figure in figures}
    return "\n".join([f"{before}{BEGIN}", "", *table(HEADER, rows.values()), "", f"{END}{after}"])


def _cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table, as they were before it was written."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def commit_here() -> str:
    """The commit that is checked out, with a + where files differ from it; "unknown" outside of a repository."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=PAGE.parent, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}{'+' if git('status', '--porcelain', '-uno') else ''}" if commit else "unknown"
