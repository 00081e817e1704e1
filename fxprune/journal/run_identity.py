"""Whose journal it is: all that decides what a search finds, and what else is worth knowing of it later."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch

from fxprune import version
from fxprune.errors import JournalError
from fxprune.io.outline import outline_of
from fxprune.io.tensors import fingerprint
from fxprune.journal.goals import without_goal
from fxprune.journal.program_digest import program_digest
from fxprune.journal.records import Identity, frozen_parts
from fxprune.problem.blocks import modules_of_block
from fxprune.problem.inputs import described
from fxprune.problem.search_problem import Problem
from fxprune.problem.width_grids import layers_of
from passes import cost

log = logging.getLogger(__name__)

FORMAT = 3
# What may differ between a run and its continuation: who trains and where things lie, not what comes out. `input` is
# how the example inputs are named, which stand in the identity themselves.
FREE = ("workers", "worker_retries", "candidate_time_limit", "ray", "netadapt_dir", "input", "keep_rounds")


def identity_of(problem: Problem) -> Identity:
    """All that decides what a search finds; two runs that agree in it end in the same network."""
    config = {key: value for key, value in problem.config.to_dict().items() if key not in FREE}
    return json.loads(
        json.dumps(
            {
                "format": FORMAT,
                "fxprune": version.__version__,
                "torch": torch.__version__,
                "graph": problem.coupling.fingerprint,
                "program": program_digest(problem.dense, problem.coupling),
                "weights": fingerprint(problem.dense),
                "example_inputs": described(problem.example_inputs),
                "budgets": [budget.to_dict() for budget in problem.budgets],
                "seed": problem.seed,
                "train": problem.trains,
                "evaluate": problem.evaluates,
                "form": problem.form,
                "scope": list(problem.scope),
                "config": config,
                "calibration": problem.calibration.digest if problem.calibration is not None else None,
                "threads": problem.threads,
                "device": device_of(problem),
            },
            default=_named,
        )
    )


def device_of(problem: Problem) -> str:
    """The kind of device that computes: bits may differ between two kinds."""
    device = next((p.device for p in problem.dense.parameters()), torch.device("cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def details_of(problem: Problem) -> dict[str, object]:
    """What is worth knowing of a run later, and may differ when it is continued."""
    costs = cost(problem.coupling)
    device = next((str(p.device) for p in problem.dense.parameters()), "cpu")
    return json.loads(
        json.dumps(
            {
                "environment": {
                    "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "device": torch.cuda.get_device_name()
                    if device.startswith("cuda")
                    else platform.processor() or device,
                    "instructions": torch.backends.cpu.get_cpu_capability(),
                    "threads": problem.threads,
                    "cores": os.cpu_count(),
                },
                "config": problem.config.to_dict(),
                "start": problem.start,
                "class": type(problem.dense).__name__,
                "outline": asdict(outline_of(problem.dense)),
                "totals": {name: costs.resource(name)(None) for name in ("macs", "flops", "params")},
                "widths": problem.coupling.full_widths,
                "grids": {name: (grid.step, grid.least) for name, grid in problem.grids.items()},
                "layers": {group.name: layers_of(group) for group in problem.coupling.groups}
                | {name: modules_of_block(problem.coupling, name) for name in problem.coupling.blocks},
                "frozen": frozen_parts(problem.coupling),
            },
            default=_named,
        )
    )


def adopted(identity: Identity, stored: Identity) -> Identity:
    """The identity of a run with the number of threads that the stored one began with: going on takes that number,
    since another would end in another network."""
    threads = stored.get("threads")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1 or threads == identity["threads"]:
        return identity
    log.warning(
        "the run began with torch.get_num_threads() == %d and goes on with as many; here it was %d",
        threads, identity["threads"],
    )  # fmt: skip
    return {**identity, "threads": threads}


def check_same(folder: Path, recorded: Identity, asked: Identity) -> None:
    """Refuse to go on with a run that is not this one, or only by its goal; every difference is named."""
    stored, now = without_goal(recorded), without_goal(asked)
    said = {
        "format": "the journal's format", "fxprune": "fxprune's version", "torch": "torch's version",
        "graph": "the model's graph", "program": "what the model computes (its operators and their numbers)",
        "weights": "the model's weights", "train": "whether there is a train function",
        "evaluate": "whether there is an evaluate function",
        "calibration": "the calibration data", "threads": "the number of torch's threads",
    }  # fmt: skip
    differences = []
    for key in sorted({*stored, *now}):
        if stored.get(key) == now.get(key):
            continue
        if key == "config":
            before, after = stored.get(key) or {}, now.get(key) or {}
            differences += [
                f"config {name}: {before.get(name)!r} there, {after.get(name)!r} here"
                for name in sorted({*before, *after})
                if before.get(name) != after.get(name)
            ]
        else:
            differences.append(f"{said.get(key, key)}: {_short(stored.get(key))} there, {_short(now.get(key))} here")
    if differences:
        raise JournalError(
            f"{folder}: the run that is kept here is another one: {'; '.join(differences)}. "
            "Start it as it was (other budgets of its resources and another netadapt_max_rounds are fine), or choose "
            "another workdir."
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) in (32, 64) else text


def _named(value: object) -> str:
    """A function in a configuration (a phone's `measure`) by its name: its address changes from run to run."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
