"""What the folder of a search will take, said before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from fxprune.io.tensors import named_tensors
from fxprune.problem.search_problem import Problem
from fxprune.search.proposals import propose_uniform
from passes import cost

MOST = 1000  # rounds that are looked at


def expected_size(problem: Problem) -> tuple[int, int]:
    """The number of rounds and the bytes of the weights that are kept, if each round hits its target exactly and all
    groups shrink alike. Records (some kB a candidate) and the sums over calibration data come on top."""
    dense = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(problem.dense))
    parameters = cost(problem.coupling).resource("params")
    most = problem.config.netadapt_max_rounds
    most = 1 if problem.strategy == "allocate" else most if most > 0 else MOST
    achieved = dict(problem.start)
    sizes: list[int] = []
    while len(sizes) < most and any(achieved[name] > limit for name, limit in problem.limits.items()):
        for name, limit in problem.limits.items():
            aim = problem.config.schedule.target(
                len(sizes) + 1, start=problem.start[name], achieved=achieved[name], budget=limit
            )
            achieved[name] = limit if problem.strategy == "allocate" else aim
        grids, widths = problem.last_grids or problem.grids, problem.coupling.widths
        shrunk = propose_uniform(problem.resources, widths, achieved, grids, widths)
        left = parameters({**widths, **shrunk.widths} if shrunk else widths) / max(1, parameters(None))
        sizes.append(int(dense * left))
    kept = problem.config.keep_rounds
    return len(sizes), sum(sizes if kept is None else sizes[: kept + 1])


def said_size(problem: Problem, folder: Path) -> str:
    """The expected size in words, and the free space where that is less."""
    rounds, size = expected_size(problem)
    text = f"{folder} will take about {_bytes(size)}: the weights of {rounds} round{'s' if rounds != 1 else ''}"
    if problem.config.keep_rounds is not None:
        text += f", of which keep_rounds keeps {problem.config.keep_rounds}"
    elif rounds > 1:
        text += " (keep_rounds limits it)"
    free = shutil.disk_usage(folder).free
    return text + (f"; only {_bytes(free)} are free" if free < size else "")


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
