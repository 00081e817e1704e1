"""Results as Markdown tables and JSON, one row of data a line so that two runs can be compared with a diff."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first column to the left, the others to the right."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return [_line(header), _line(align), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write(folder: Path, name: str, text: str, data: dict[str, Any]) -> None:
    """Print the text and write ``name.md`` and ``name.json`` into `folder`."""
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(lines_of(data), encoding="utf-8")


def lines_of(data: dict[str, Any]) -> str:
    """JSON with the items of every list at the top on lines of their own."""

    def value(item: Any) -> str:
        if isinstance(item, list):
            return "[\n" + ",\n".join(f"  {json.dumps(rounded(one))}" for one in item) + "\n ]"
        return json.dumps(rounded(item))

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {value(item)}" for key, item in data.items()) + "\n}\n"


def rounded(item: Any) -> Any:
    """Numbers to five digits, and none that JSON does not know."""
    if isinstance(item, dict):
        return {str(key): rounded(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [rounded(value) for value in item]
    if isinstance(item, float):
        return float(f"{item:.5g}") if math.isfinite(item) else str(item)
    return item


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; of ratios, the mean that does not depend on which side is divided by which."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
