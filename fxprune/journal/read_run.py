"""A finished or interrupted run, read from its folder for tables, reports and restoring; no model, no lock."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxprune.config.keys import NetAdaptConfig
from fxprune.criteria.curves import Curve
from fxprune.errors import FxpruneError, JournalError
from fxprune.io.outline import Outline
from fxprune.io.storage import Damaged, read_json
from fxprune.io.typed_records import made, typed
from fxprune.journal.folder import Folder
from fxprune.journal.goals import read_goals
from fxprune.journal.protocol import Journal
from fxprune.journal.records import Candidate, FrozenPart, Identity, Round
from fxprune.resources.budgets import Budget, parse_budget
from fxprune.resources.layer_costs import LayerCosts
from passes.arguments import file_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a folder holds of a search.

    `rounds` are the intact ones in a row, `unfinished` the candidates of the round in progress, `result` how the
    search ended (None while it has not), `damage` what was found truncated, altered or foreign. `model`: class name,
    fingerprints of graph, weights and program, and the shapes of the example inputs, for which the last holds.
    `frozen`: of the analysis, each with tensor, dim, reason, node and source.
    `grids`: group to (step, least width). `calibrated`: it goes by calibration data, and `curves` say what each width
    of each group costs. `evaluated`: there is an evaluate function. `form`: whether a module or its graph was searched.
    `layer_costs`: of each layer before and after, of a finished search. `outline`: what stands beside the tensors; None
    in a folder of an older fxprune. `inputs`: shapes and types of the example inputs.
    """

    folder: Path
    config: NetAdaptConfig
    environment: dict[str, object]
    model: dict[str, str]
    budgets: tuple[Budget, ...]
    start: dict[str, float]
    limits: dict[str, float]
    totals: dict[str, int]
    original_widths: dict[str, int]
    grids: dict[str, tuple[int, int]]
    layers: dict[str, tuple[str, ...]]
    frozen: tuple[FrozenPart, ...]
    outline: Outline | None
    data_free: bool
    baseline: float
    rounds: tuple[Round, ...]
    unfinished: tuple[Candidate, ...]
    result: dict[str, Any] | None
    damage: tuple[str, ...]
    journal: Journal
    form: str = "graph"
    calibrated: bool = False
    evaluated: bool = True
    curves: dict[str, Curve] = field(default_factory=dict)
    inputs: str = ""
    layer_costs: tuple[LayerCosts, ...] = ()

    @property
    def accepted(self) -> int:
        """The round whose network the search returned, or the last that is intact; 0 is the unpruned one."""
        return min(self.result["accepted"] if self.result else len(self.rounds), len(self.rounds))

    def weights(self, round: int) -> bytes | None:
        """The weights of the network that a round chose, as safetensors; None where they were removed and follow from
        the plan."""
        return self.journal.weights(round)


def read_run(workdir: str | Path) -> Run:
    """Read the folder of a search without searching in it."""
    folder = file_name(workdir, "workdir", "the name of the folder of a search", JournalError)
    if folder.exists() and not folder.is_dir():
        raise JournalError(f"{folder} is a file; expected the workdir of a search, a folder with run.json.")
    try:
        found = read_json(folder / "run.json")
    except Damaged as damage:
        raise JournalError(f"{damage}; start the search again as it was to mend it.") from None
    if found is None:
        raise JournalError(f"{folder}: there is no run here; expected the workdir of a search, a folder with run.json.")
    try:
        run = _run(folder, found["identity"], found["details"])
        _check_together(run)
        return run
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FxpruneError):
            raise
        raise JournalError(
            f"{folder / 'run.json'}: the record has not the form that this version writes "
            f"({type(error).__name__}: {error}); read it with the fxprune that wrote it."
        ) from error


def _check_together(run: Run) -> None:
    """ValueError where the records, each of them intact, are not all of one search."""
    names, groups = set(run.limits), set(run.original_widths)
    if not names or not all(isinstance(run.start.get(name), int | float) and run.start[name] > 0 for name in names):
        raise ValueError("the start of the search does not say what each budgeted resource was")
    for number, record in enumerate(run.rounds, 1):
        if record.round != number or not names <= record.targets.keys() & record.achieved.keys():
            raise ValueError(f"round {number} is not one of a search for {', '.join(sorted(names))}")
        if set(record.widths) != groups or not set(record.winner.widths) <= groups:
            raise ValueError(f"round {number} has other groups than the network")


def _run(folder: Path, identity: Identity, details: dict[str, Any]) -> Run:
    journal, damage = Folder(folder, identity, None), []
    try:
        goals = read_goals(folder, identity)
    except Damaged as error:
        goals, damage = (), [f"{error}; shown is the first goal of the search"]
    if goals:
        identity = goals[-1].put_into(identity)
        details = {**details, "config": {**details["config"], **goals[-1].config}}
    rounds: list[Round] = []
    while (record := journal.recorded_round(len(rounds) + 1)) is not None:
        rounds.append(record)
    return run_from(
        folder, identity, details, journal, tuple(rounds), journal.recorded_candidates(len(rounds) + 1),
        journal.recorded_result(), journal.baseline() or 0.0, (*damage, *journal.damage),
    )  # fmt: skip


def run_from(
    folder: Path,
    identity: Identity,
    details: dict[str, object],
    journal: Journal,
    rounds: tuple[Round, ...],
    unfinished: tuple[Candidate, ...],
    result: dict[str, object] | None,
    baseline: float,
    damage: tuple[str, ...] = (),
) -> Run:
    """A run from its identity and details (`fxprune.journal.run_identity`), which are checked, and its records."""

    budgets = parse_budget(identity["budgets"])
    start = typed(dict[str, float], details["start"], "start")

    def kept(name: str, hint: object) -> Any:
        return typed(hint, details[name], name)

    return Run(
        folder=folder,
        config=NetAdaptConfig.from_dict(kept("config", dict[str, object]), str(folder / "run.json")),
        environment=kept("environment", dict[str, object]),
        model={
            "class": kept("class", str),
            "graph": identity["graph"],
            "weights": identity["weights"],
            "program": identity.get("program", ""),
            "example_inputs": identity["example_inputs"],
        },  # fmt: skip
        budgets=budgets,
        start=start,
        limits={budget.resource: budget.limit(start[budget.resource]) for budget in budgets},
        totals=kept("totals", dict[str, int]),
        original_widths=kept("widths", dict[str, int]),
        grids={name: (step, least) for name, (step, least) in kept("grids", dict[str, list[int]]).items()},
        layers=kept("layers", dict[str, tuple[str, ...]]),
        frozen=kept("frozen", tuple[dict[str, object], ...]),
        outline=made(Outline, details["outline"]) if "outline" in details else None,
        data_free=not identity["evaluate"] and not identity.get("calibration"),
        evaluated=bool(identity["evaluate"]),
        calibrated=bool(identity.get("calibration")),
        curves=journal.recorded_curves() or {},
        baseline=baseline,
        rounds=rounds,
        unfinished=unfinished,
        result=result,
        damage=damage,
        journal=journal,
        form=identity.get("form", "graph"),
        inputs=typed(str, identity["example_inputs"], "example_inputs"),
        layer_costs=typed(tuple[LayerCosts, ...], (result or {}).get("layers", []), "layers"),
    )
