"""The command lines of the benchmarks: what several of them take is stated here once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SHARED: dict[str, dict[str, Any]] = {
    "out": {"type": Path, "default": Path("benchmarks/results"), "help": "folder for the page and its figures"},
    "only": {"nargs": "+", "metavar": "NAME", "default": ["*"], "help": "networks, * and ? as in file names"},
    "repeats": {"type": int, "default": 3, "help": "timed runs of each; the least counts"},
    "jobs": {"type": int, "default": 1, "help": "networks at a time; more than 1 spoils the seconds"},
    "seconds": {"type": float, "default": 300, "help": "limit for one network, of the processor"},
    "memory": {"type": float, "default": 12, "help": "limit for one network, GiB of address space"},
    "depth": {"type": int, "choices": (20, 56), "default": 20, "help": "layers of the ResNet"},
    "rate": {"type": float, "default": 0.1, "help": "share of the MACs that a round removes"},
    "candidates": {"type": int, "default": 6, "help": "candidates that a round of netadapt trains"},
    "short": {"type": int, "default": 10, "help": "fine-tuning steps of a candidate or a round"},
    "long": {"type": int, "default": 200, "help": "fine-tuning steps after the search"},
    "train-images": {"type": int, "default": 10_000},
    "search-images": {"type": int, "default": 1_000, "help": "validation images that rank candidates"},
    "device": {"default": "cpu"},
}


def command_line(name: str, description: str | None, shared: str = "", **defaults: object) -> argparse.ArgumentParser:
    """The parser of ``python -m benchmarks.NAME`` with `out` and the shared options that are named.

    defaults: of those options that differ from the shared ones.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    for option in (*shared.split(), "out"):
        parser.add_argument(f"--{option}", **SHARED[option])
    parser.set_defaults(**defaults)
    return parser
