"""What the data say of one network: statistics, curves of its groups, and the repair of what plans leave of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.criteria.curves import TRIED, Curve, curves
from fxprune.errors import InputError
from fxprune.journal.protocol import Journal
from fxprune.problem.calibration import Calibration, count_samples, first_samples
from fxprune.problem.search_problem import Problem
from fxprune.search.progress import Progress
from fxprune.training.candidate import seeded
from fxprune.workers.coupled_network import CoupledNetwork
from fxprune.workers.observing import observed_by, shards_of
from fxprune.workers.protocol import Workers
from fxprune.workers.repair import Repair
from passes import Statistics
from passes.statistics import Batch
from passes.statistics.divergence import distance, outputs_of

log = logging.getLogger(__name__)
RUNS = 20_000  # samples that networks are run on to measure the curves, all together
GRADIENTS = ("fisher", "taylor")  # the criteria that need them


@dataclass(frozen=True, eq=False)
class Observed:
    """The network is that of `repair.dense`."""

    repair: Repair
    curves: dict[str, Curve]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """How much each unit of each group is needed."""
        return {name: curve.scores for name, curve in self.curves.items()}

    def lost(self, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
        """What the network loses at each smaller width of each group, from these widths on."""
        return {name: np.maximum(0.0, c.errors - c.errors[widths[name]]) for name, c in self.curves.items()}


def observed(
    problem: Problem, calibration: Calibration, dense: CoupledNetwork, workers: Workers, journal: Journal | None,
    progress: Progress,
) -> Observed:  # fmt: skip
    """One pass of the data over `dense`, and the curves; from the journal, where they are kept there."""
    config, network, coupling = problem.config, dense.network, dense.coupling
    expected = _expected(problem.dense, calibration.held)
    progress.stage("observing calibration data")
    known = journal.observed() if journal is not None else None
    if known is not None:
        statistics, made = known[0].bound(network, coupling), known[1]
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        for moments in statistics.moments.values():
            moments.to(device)
    else:
        statistics = _statistics(problem, calibration, dense, workers, progress)
        log.info("observed %d samples; %.0f MB of sums", statistics.samples, statistics.size_bytes / 1e6)
        with seeded(problem.seed):
            made = curves(
                network, coupling, statistics, first_samples(calibration.held, _judging(len(problem.grids))),
                criterion=config.criterion,
                groups=list(problem.grids), seed=problem.seed,
                progress=lambda group: progress.stage("measuring what each group's width costs", f"{group} is done"),
            )  # fmt: skip
        if journal is not None:
            journal.save_observed(statistics, made)
    repair = Repair(dense, statistics, calibration, expected, config.compensate, config.refine, problem.seed)
    return Observed(repair, made)


def _expected(dense: nn.Module, held: Sequence[Batch]) -> list[list[Tensor]]:
    """The outputs that candidates are compared with. Raises InputError where they are no numbers."""
    expected = outputs_of(dense, held)
    if not any(tensor.numel() for tensors in expected for tensor in tensors):
        log.warning(
            "on the calibration data that judge (%d samples) the network gives no result at all, so that networks "
            "cannot be compared; pass inputs in which it finds something",
            count_samples(held),
        )
    for number, tensors in enumerate(expected, 1):
        if not torch.isfinite(distance(tensors, tensors)):
            raise InputError(
                f"netadapt: calibration: on batch {number} of the {len(held)} that judge (the last fifth of the data) "
                "the network gives NaN or infinity, with which no candidate can be compared; leave such samples out."
            )
    return expected


def _statistics(
    problem: Problem, calibration: Calibration, dense: CoupledNetwork, workers: Workers, progress: Progress
) -> Statistics:
    """The sums over all shards of the calibration data, added in their order: the same wherever they were made."""
    gradients = "sampled" if problem.config.criterion in GRADIENTS else None
    shards = shards_of(calibration.fitted, problem.config.statistics_shards, problem.seed, gradients)
    samples = sum(shard.samples for shard in shards)

    def told(done: int) -> None:
        progress.stage("observing calibration data", f"{done} of {samples} samples")

    merged = reduce(Statistics.merge, observed_by(workers, dense, shards, told))
    return merged.bound(dense.network, dense.coupling)


def _judging(groups: int) -> int:
    """How many held-out samples judge each measured width: fewer where there are many groups."""
    return max(64, min(512, RUNS // max(1, groups * len(TRIED))))
