"""How a sliced candidate is repaired without training: compensated, its norms estimated anew, and refined if it is
kept; and how far its outputs then are from the dense ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxprune.errors import InputError
from fxprune.io.tensors import named_tensors, put_tensors, tensors_of
from fxprune.problem.calibration import Calibration, count_samples, first_samples
from fxprune.problem.inputs import graph_like
from fxprune.training.repaired import Repaired, RepairedLayer
from fxprune.workers.coupled_network import CoupledNetwork
from passes import (
    Coupling,
    Group,
    PassError,
    Plan,
    PruneChannels,
    Statistics,
    compensate,
    cost,
    refine,
    repairs_of,
)
from passes.errors import CaptureError
from passes.frontend.fidelity import settle
from passes.repair import SegmentRepair
from passes.repair.batch_norms import reestimated, settled
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of
from passes.stream.call_arguments import tensors_of as inputs_in
from passes.stream.network_copies import copied_network

log = logging.getLogger(__name__)
NORM_SAMPLES = 1024  # norms of a candidate are estimated on so many
JUDGING = 1024  # held-out samples that judge one that is refined for a comparison
_ROUNDING = 1e-4  # divergence that two forms of one network may have
_ONLY = "the weights are compensated in closed form only: %s"
ROOM_BYTES = 2 * 2**30  # of the values of all samples that a refinement holds
WORK = 4e13  # multiplications that a refinement may take: about half an hour of one core
ROUND_PASSES = 25  # forward passes of each sample that a round of refinement takes as long as
_OF_DENSE = ("_graph", "_is_large")  # what is found of the dense network once, and not sent to other processes
_FEWEST = 4096  # readings of each weight, on average, below which nothing is refined: there are more columns than that


@dataclass(eq=False)
class Repair:
    """Repairs what plans leave of `dense`. It can be pickled.

    expected: the outputs of the unpruned network on the held-out batches; it is `dense` itself, or what `dense` was
    pruned from. compensates: False where candidates stay sliced, and are only judged. rounds: of Gauss-Newton in the
    refinement of a network that is kept; 0 leaves it out.
    """

    dense: CoupledNetwork
    statistics: Statistics
    calibration: Calibration
    expected: list[list[Tensor]]
    compensates: bool = True
    rounds: int = 4
    seed: int = 0

    def __getstate__(self) -> dict[str, object]:
        state = {name: value for name, value in self.__dict__.items() if name not in _OF_DENSE}
        return {**state, "statistics": replace(self.statistics, network=None, coupling=None)}

    def score(self, network: nn.Module) -> float:
        """Minus the divergence of a network's outputs from the dense ones on held-out data; minus infinity where they
        are no numbers."""
        found = divergence(network, self.calibration.held, self.expected)
        return -found if np.isfinite(found) else -np.inf

    def on(self, judging: int, fitted: int, rounds: int) -> Repair:
        """The same with other rounds on fewer samples: the first held-out batches that hold `judging`, and the first
        `fitted` to fit to."""
        held: list[Batch] = []
        for batch in self.calibration.held:
            if count_samples(held) < judging:
                held.append(batch)
        fewer = replace(self.calibration, fitted=first_samples(self.calibration.fitted, fitted), held=held)
        made = replace(self, calibration=fewer, expected=self.expected[: len(held)], rounds=rounds)
        made.__dict__.update({name: self.__dict__[name] for name in _OF_DENSE if name in self.__dict__})
        return made

    def screen(self, candidate: nn.Module, plan: Plan, samples: int | None = None) -> Repaired:
        """Compensate a sliced candidate, in place, in closed form; its norms are estimated anew where that helps.

        samples: judged on so many, where not on all.
        """
        if samples is not None:
            return self.on(samples, samples, self.rounds).screen(candidate, plan)
        if not self.compensates:
            return Repaired(None, None, _checked(-self.score(candidate)))
        made, found, layers = self._closed(candidate, plan)
        put_tensors(candidate, tensors_of(made))
        return Repaired(None, found, _checked(found), layers)

    @property
    def refines(self) -> bool:
        """Whether networks can be refined; where not, the log says why."""
        if not (self.compensates and self.rounds) or self._is_large:
            return False
        return isinstance(self.dense.network, GraphModule) or self._graph is not None

    def refine_lightly(self, candidate: nn.Module, plan: Plan, samples: int) -> Repaired:
        """Refine a sliced candidate, in place, in one round on so many samples.

        How near it then is to the dense outputs tells how near `keep` would bring it, at a share of the time.
        """
        if not self.refines:
            return self.screen(candidate, plan, samples)
        return self.on(JUDGING, samples, rounds=1).keep(candidate, plan)

    def keep(
        self, candidate: nn.Module, plan: Plan, thorough: bool = True,
        progress: Callable[[SegmentRepair], None] | None = None,
    ) -> Repaired:  # fmt: skip
        """Repair a sliced candidate, in place, as well as can be: the best of slice, closed form and refinement.

        Its norms hold the statistics of what they read, so that training can go on from it. thorough: with refinement.
        """
        sliced = -self.score(candidate)
        if not self.compensates:
            return Repaired(sliced, None, _checked(sliced))
        made, compensated, layers = self._closed(candidate, plan)
        network, best = (made, compensated) if compensated < sliced else (candidate, sliced)
        if thorough and self.rounds:
            refined = self._refined(network, plan, progress)
            found = best if refined is network else -self.score(refined)
            if found < best:
                network, best = refined, found
        network = settled(network, self.calibration.fitted)
        put_tensors(candidate, tensors_of(network))
        return Repaired(_number(sliced), _number(compensated), _checked(best), layers)

    def _closed(self, candidate: nn.Module, plan: Plan) -> tuple[nn.Module, float, tuple[RepairedLayer, ...]]:
        """The candidate in closed form, its norms new where they bring it nearer to the dense outputs, and how near."""
        closed = compensate(candidate, self.statistics, plan, self.dense.network)
        layers = tuple(RepairedLayer(r.name, _number(r.before), _number(r.after), r.why) for r in repairs_of(closed))
        found = -self.score(closed)
        renewed = reestimated(closed, first_samples(self.calibration.fitted, NORM_SAMPLES))
        if renewed is not closed and (renewed_found := -self.score(renewed)) < found:
            return renewed, renewed_found, layers
        return closed, found, layers

    def _refined(self, start: nn.Module, plan: Plan, progress: Callable[[SegmentRepair], None] | None) -> nn.Module:
        """`start` refined segment by segment. A module is refined in its graph, and takes the weights back.

        A network that `_is_large`, and a module without a graph (see `_graph`), stay as they are.
        """
        if self._is_large:
            return start
        fitted, held = self._refining
        chosen: dict[str, Any] = {"held": held, "rounds": self.rounds, "seed": self.seed, "progress": progress}
        dense = self.dense.network
        if isinstance(dense, GraphModule) and isinstance(start, GraphModule):
            return refine(start, plan, dense, fitted, **chosen).network
        if self._graph is None:
            return start
        gm, own = self._graph
        same = replace(plan, fingerprint=own.fingerprint, inputs=own.inputs)
        cut = PruneChannels(same)(gm).graph_module
        mine = dict(named_tensors(start))
        if any(name not in mine or mine[name].shape != tensor.shape for name, tensor in named_tensors(cut)):
            log.warning(_ONLY, "the graph names its tensors in another way")
            return start
        put_tensors(cut, {name: mine[name] for name, _ in named_tensors(cut)})
        refined = refine(cut, same, gm, fitted, **chosen)
        made = copied_network(start)
        own_tensors = dict(named_tensors(made))
        with torch.no_grad():
            for name, tensor in named_tensors(refined.network):
                own_tensors[name].copy_(tensor)
        return made

    @cached_property
    def _graph(self) -> tuple[GraphModule, Coupling] | None:
        """The graph of a dense module, with the module's groups, made once in each process.

        None where it cannot be captured, gives something else, or has other groups; the log says so.
        """
        fitted, held = self._refining
        dense, coupling = self.dense.network, self.dense.coupling
        try:
            gm, own = graph_like(dense, coupling, self.dense.example_inputs)
            settle(gm)
        except (InputError, CaptureError) as error:
            log.warning(_ONLY, f"refinement needs a graph. {error}")
            return None
        if not _computes_the_same(gm, dense, [*fitted, *held]):
            log.warning(_ONLY, "the graph, captured at the example's sizes, gives something else on calibration data")
            return None
        own = own.formed(coupling.orders)
        if any(not _same(own.group(group.name), group) for group in coupling.groups):
            log.warning(_ONLY, "the graph has its units in other places")
            return None
        return gm, own

    @property
    def _refining(self) -> tuple[list[Batch], list[Batch]]:
        """The batches that a refinement fits to, and those that judge it."""
        room = self._room()
        return first_samples(self.calibration.fitted, room), first_samples(self.calibration.held, max(32, room // 4))

    @cached_property
    def _is_large(self) -> bool:
        """Whether refinement would take too long for what it gains; the log says so."""
        parameters = sum(t.numel() for t in self.dense.network.parameters())
        large = self._work / (ROUND_PASSES * self.rounds * max(parameters, 1)) < _FEWEST
        if large:
            why = f"with {parameters / 1e6:.0f} million parameters refinement takes hours; passes.refine does it"
            log.warning(_ONLY, why)
        return large

    def _room(self) -> int:
        """How many samples a refinement may hold the values of, between two of its segments, and has the time for."""
        parameters = sum(t.numel() * t.element_size() for t in self.dense.network.parameters())
        each = max(1.0, (float(cost(self.dense.coupling).resource("memory")(None)) - parameters) / self._example_size)
        return max(64, int(min(ROOM_BYTES / each, self._work / (ROUND_PASSES * self.rounds * self.macs))))

    @property
    def _work(self) -> float:
        """Multiplications that a refinement may take: a GPU does a hundred times as many in the same time."""
        on_gpu = any(tensor.device.type == "cuda" for tensor in self.dense.network.parameters())
        return 100 * WORK if on_gpu else WORK

    @property
    def macs(self) -> float:
        """Multiplications of the dense network for one sample."""
        return float(cost(self.dense.coupling).resource("macs")(None)) / self._example_size

    @property
    def _example_size(self) -> int:
        return max(1, Batch(*_call(self.dense.example_inputs)).size)


def _computes_the_same(gm: GraphModule, module: nn.Module, batches: Sequence[Batch]) -> bool:
    """Whether a graph gives what its module gives, on one batch of each size."""
    by_size = {tuple(t.shape for t in inputs_in((b.args, dict(b.kwargs)))): b for b in batches}
    chosen = list(by_size.values())
    try:
        return divergence(gm, chosen, outputs_of(module, chosen)) <= _ROUNDING
    except PassError:  # the graph does not run at one of the sizes
        return False


def _call(example_inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Example inputs as the arguments of a call."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def _same(first: Group, second: Group) -> bool:
    """Whether two groups of a name hold the same positions of the same tensors."""
    mine, theirs = ({(s.tensor, s.dim): s.index for s in group.slices} for group in (first, second))
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


def _number(value: float) -> float | None:
    """A number as JSON can hold it."""
    return float(value) if np.isfinite(value) else None


def _checked(found: float) -> float:
    """A divergence that candidates can be compared by. Raises InputError for one that is none."""
    if not np.isfinite(found):
        raise InputError("the outputs on calibration data hold NaN or infinity, so the network cannot be compared")
    return found
