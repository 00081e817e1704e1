"""What a search remembers: one record a candidate, one a round; plain data that JSON holds without loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from fxprune.criteria.curves import Curve
from fxprune.io.storage import Damaged
from fxprune.io.typed_records import made, typed
from fxprune.training.repaired import Repaired
from passes import Coupling


class FrozenPart(TypedDict):
    """What the analysis keeps of one dimension of a tensor, and why."""

    tensor: str
    dim: int
    reason: str
    node: str
    source: str


def frozen_parts(coupling: Coupling) -> list[FrozenPart]:
    """All that the analysis keeps as it is."""
    return [
        {"tensor": f.tensor, "dim": f.dim, "reason": f.reason, "node": f.node, "source": f.source}
        for f in coupling.frozen
    ]


class Identity(TypedDict):
    """All that decides what a search finds, as `run.json` holds it."""

    format: int
    fxprune: str
    torch: str
    graph: str
    program: str
    weights: str
    example_inputs: str
    budgets: list[dict[str, object]]
    seed: int
    train: bool
    evaluate: bool
    form: str
    scope: list[str]
    config: dict[str, object]
    calibration: str | None
    threads: int
    device: str


@dataclass(frozen=True)
class Candidate:
    """One proposal of a round, and what came of it.

    `feasible`: it meets every target of the round. `trained`: it was fine-tuned and evaluated (a feasible one may be
    left out by `candidates_per_round`). `score` is what evaluate returned, or without one minus the importance lost;
    None where there is none, and `error` then says why. `lost` is the importance that the whole network loses by it,
    relative to the round's start. With calibration data `screened` is minus the divergence of its outputs from the
    dense ones, compensated and without training, and `repaired` what repair did to one that went on from there.
    `samples`: it was compared on so many samples: where it was not `refined` (in one round, on these) it was only
    measured, for what its widths cost, and could not be chosen.
    """

    index: int
    group: str
    widths: dict[str, int]
    resources: dict[str, float]
    feasible: bool
    lost: float
    seed: int = 0
    steps: int = 0
    trained: bool = False
    score: float | None = None
    error: str | None = None
    seconds_train: float = 0.0
    seconds_evaluate: float = 0.0
    screened: float | None = None
    repaired: Repaired | None = field(default=None, repr=False)
    samples: int | None = None
    refined: bool = False

    @property
    def width(self) -> int:
        """The new width of the group; of a joint proposal, of its first group."""
        return next(iter(self.widths.values()))


@dataclass(frozen=True)
class Round:
    """One round: what it aimed at, what it tried, what it chose.

    `achieved` is what the budgets are judged by: measured where a resource is measured, else predicted. `chosen` is
    the index of the chosen candidate. `widths` are those of all groups afterwards, `plan` the JSON of the plan
    relative to the original network. `repaired`: with calibration data, what repair did to the chosen one.
    """

    round: int
    targets: dict[str, float]
    achieved: dict[str, float]
    predicted: dict[str, float]
    measured: dict[str, float]
    chosen: int
    reason: str
    score: float
    candidates: tuple[Candidate, ...]
    widths: dict[str, int]
    plan: str = field(repr=False)
    seconds: float = 0.0
    repaired: Repaired | None = field(default=None, repr=False)

    @property
    def winner(self) -> Candidate:
        return next(c for c in self.candidates if c.index == self.chosen)

    @property
    def chosen_group(self) -> str:
        return self.winner.group


def candidate_to_dict(candidate: Candidate) -> dict[str, object]:
    return asdict(candidate)


def candidate_from_dict(data: object) -> Candidate:
    """Raises ValueError where `data` is no record of a candidate."""
    return made(Candidate, data)


def round_to_dict(record: Round) -> dict[str, object]:
    return asdict(record)


def round_from_dict(data: object) -> Round:
    """Raises ValueError where `data` is no record of a round."""
    found = made(Round, data)
    if found.chosen not in {candidate.index for candidate in found.candidates}:
        raise ValueError(f"Round.chosen is {found.chosen}, which is none of its candidates")
    return found


def _accepted_of(found: object) -> int:
    number: int = typed(int, found, "accepted")
    if number < 0:
        raise ValueError(f"accepted is {number}, expected the number of a round")
    return number


def _certificate_of(found: object) -> dict[str, object]:
    if not isinstance(found, dict) or not isinstance(found.get("max_error"), int | float):
        raise ValueError("certificate has no largest error")
    return found


def _curves_of(found: object) -> dict[str, Curve]:
    if not isinstance(found, dict):
        raise ValueError("curves is no table of groups")
    return {str(name): Curve.from_dict(str(name), entry) for name, entry in found.items()}


_READERS: dict[str, Callable[[Any], object]] = {
    "curves": _curves_of, "candidate": candidate_from_dict, "round": round_from_dict, "score": float,
    "accepted": _accepted_of, "certificate": _certificate_of, "met": lambda found: typed(bool, found, "met"),
    "rounds": lambda found: set(typed(tuple[int, ...], found, "rounds")),
}  # fmt: skip


def read_record(path: Path, found: dict[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    """A record with its entries `keys` built of JSON; those without a reader are a text or null.

    Raises Damaged where an entry is missing or of a wrong form.
    """
    try:
        built = {
            key: _READERS[key](found[key]) if key in _READERS else typed(str | None, found[key], key) for key in keys
        }
        return {**found, **built}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{path}: the record has not the form that this version writes ({error})") from None
