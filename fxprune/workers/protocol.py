"""Workers: who trains the candidates of a round; what they are given, and what they give back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

from torch import Tensor, nn

from fxprune.errors import WorkerError
from fxprune.io.tensors import tensors_of, to_bytes
from fxprune.registries import call
from fxprune.training.candidate import Evaluate, Prepare, Train, Trained, train_candidate
from fxprune.workers.coupled_network import CoupledNetwork
from fxprune.workers.observing import Shard, Told, observed_by
from fxprune.workers.repair import Repair
from passes import Coupling, Plan, Statistics, apply_plan
from passes.arguments import got, is_a

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One candidate to train: its plan relative to the network of the round, steps and seed.

    repair: "" for a candidate that stays sliced; "screen": it is repaired in closed form and only scored, so that
    its weights are not kept; "screen refined": the same after a round of refinement; "keep": it is repaired in closed
    form, then trained if there are steps; "refine": the same with refinement. samples: one that is screened is judged,
    or refined, on so many at most.
    """

    index: int
    plan: Plan
    steps: int
    seed: int
    repair: str = ""
    samples: int | None = None

    @property
    def screens(self) -> bool:
        """Whether it is compared only, by its outputs."""
        return self.repair in ("screen", "screen refined")

    def trainer(self, train: Train | None) -> Train | None:
        """What trains it, if anything does."""
        return train if not self.repair or (self.steps and not self.screens) else None

    def judge(self, evaluate: Evaluate | None, repair: Repair | None) -> Evaluate | None:
        """What scores it, where that is not known from its repair."""
        if self.screens:
            return None
        return evaluate or (repair.score if repair is not None and self.steps else None)

    def prepare(self, repair: Repair | None) -> Prepare | None:
        """What repairs it."""
        if repair is None or not self.repair:
            return None
        if self.repair == "screen":
            return partial(repair.screen, plan=self.plan, samples=self.samples)
        if self.repair == "screen refined":
            assert self.samples is not None, "it says on how many"
            return partial(repair.refine_lightly, plan=self.plan, samples=self.samples)
        return partial(repair.keep, plan=self.plan, thorough=self.repair == "refine")

    def gives_weights(self, train: Train | None) -> bool:
        """Whether its weights are others afterwards than those of its slice, and wanted."""
        return self.repair in ("keep", "refine") or (not self.repair and train is not None)


@dataclass(frozen=True)
class Outcome:
    """What came of a task. `weights` makes the tensors afterwards (safetensors), before the next outcome is asked for:
    most candidates are not chosen. None if it failed or nothing was trained."""

    index: int
    trained: Trained
    weights: Callable[[], bytes] | None


class Workers(Protocol):
    """Trains candidates, in any order and place; the same task gives the same outcome everywhere.

    Those that can also observe calibration data are `fxprune.workers.observing.Observers` as well.
    """

    def start(self) -> None:
        """Get ready, before the search begins; a WorkerError says what cannot be sent, and how to fix it."""

    def run(
        self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None
    ) -> Iterator[Outcome]:
        """Yield an outcome for each task, as they finish. `network`, coupled as `coupling`, is left as it is.

        repair: repairs the tasks that ask for it; it is that of `network`.
        """

    def close(self) -> None:
        """Give everything back; called at the end, also after an interruption."""


@dataclass(frozen=True)
class Job:
    """What workers are made for.

    train, evaluate: the user's functions, None where nothing is trained or evaluated. count: how many workers a
    configuration asks for. retries: how often a candidate is tried again whose worker was lost or took longer than
    `limit_s` seconds. settings: the configuration's table for this kind of workers.
    """

    train: Train | None
    evaluate: Evaluate | None
    count: int = 1
    retries: int = 1
    limit_s: float | None = None
    settings: dict[str, object] = field(default_factory=dict)

    def do(self, network: nn.Module, task: Task, repair: Repair | None = None) -> Outcome:
        """Cut, repair, train and evaluate one candidate in this process."""
        attempts, wanted = 1 + self.retries, task.gives_weights(self.train)
        for attempt in range(attempts):
            candidate = apply_plan(network, task.plan)
            state: dict[str, Tensor] | None = {} if wanted else None
            trained = train_candidate(
                candidate, task.steps, task.seed, task.trainer(self.train), task.judge(self.evaluate, repair),
                self.limit_s, task.prepare(repair), task.plan.inputs, state,
            )  # fmt: skip
            if not trained.late:
                break
            log.warning("candidate %d, attempt %d of %d: %s", task.index, attempt + 1, attempts, trained.error)
        keep = wanted and trained.error is None
        return Outcome(task.index, trained, partial(weights_of, candidate, state) if keep else None)


def weights_of(candidate: nn.Module, state: dict[str, Tensor] | None) -> bytes:
    """The tensors of a candidate as it was scored: `state`, taken before it was evaluated, where somebody did that."""
    return to_bytes(state or tensors_of(candidate))


@dataclass
class Timed:
    """Workers, held to what `Workers` says, with the seconds that they spent in train and evaluate.

    name: of the workers, in words. Raises WorkerError, which has it, for an object that is none, and for results that
    are not one for each candidate.
    """

    workers: Workers
    name: str = "workers"
    train: float = 0.0
    evaluate: float = 0.0

    def __post_init__(self) -> None:
        missing = [one for one in ("start", "run", "close") if not callable(getattr(self.workers, one, None))]
        if missing:
            raise WorkerError(
                f"{self.name}: got {got(self.workers)}, which has no {missing[0]}; expected an object with start(), "
                "run(network, coupling, tasks) and close()."
            )

    def start(self) -> None:
        self.workers.start()

    def run(
        self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None
    ) -> Iterator[Outcome]:
        given = (network, coupling, tasks) if repair is None else (network, coupling, tasks, repair)
        found: object = call(
            self.workers.run, f"{self.name}: run", "run(network, coupling, tasks, repair=None)", *given
        )
        expected = f"an Outcome, as job.do(network, task) makes one, for each of {len(tasks)} candidates"
        is_a(found, Iterable, f"{self.name}: run", expected, WorkerError)
        waiting = {task.index for task in tasks}
        for outcome in cast("Iterable[object]", found):
            is_a(outcome, Outcome, f"{self.name}: run", expected, WorkerError)
            assert isinstance(outcome, Outcome), "it was checked"
            trained = outcome.trained
            if outcome.index not in waiting:
                raise WorkerError(
                    f"{self.name}: run: got an outcome of candidate {outcome.index}, which came before or was not "
                    f"given; expected {expected}."
                )
            if not isinstance(trained, Trained) or (trained.score is None and trained.error is None):
                raise WorkerError(
                    f"{self.name}: run: candidate {outcome.index}: got neither a score nor an error; "
                    "expected a Trained with one of them."
                )
            waiting.remove(outcome.index)
            self.train += trained.seconds_train
            self.evaluate += trained.seconds_evaluate
            yield outcome
        if waiting:
            raise WorkerError(
                f"{self.name}: run: it ended without an outcome of candidate {min(waiting)} "
                f"({len(waiting)} of {len(tasks)} are missing); expected {expected}, and of one that failed as well."
            )

    def observe(self, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told) -> Iterator[Statistics]:
        found: object = observed_by(self.workers, dense, shards, progress)
        expected = f"the Statistics of each of {len(shards)} shards, in their order"
        is_a(found, Iterable, f"{self.name}: observe", expected, WorkerError)
        count = 0
        for one in cast("Iterable[object]", found):
            is_a(one, Statistics, f"{self.name}: observe", expected, WorkerError)
            count += 1
            yield cast(Statistics, one)
        if count != len(shards):
            raise WorkerError(f"{self.name}: observe: got {count} results; expected {expected}.")

    def close(self) -> None:
        self.workers.close()


def sent(index: int, trained: Trained, weights: bytes | None) -> Outcome:
    """The outcome of a task whose weights came from another process."""
    return Outcome(index, trained, None if weights is None else partial(bytes, weights))
