"""A pruned graph repaired segment by segment on its own inputs, against the dense network's values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from passes.analysis.coupling import Coupling, recall
from passes.arguments import got, integer, is_a, tell
from passes.axes.index_sets import survivors
from passes.documents.plan import Plan, is_plan
from passes.errors import PassError, PlanError
from passes.graph.given_networks import given
from passes.graph.module_copies import owned_tensors
from passes.graph.nodes import input_nodes
from passes.ops import Value
from passes.process.settings import tensors_with_values
from passes.process.torch_private import pytree
from passes.repair.fitting import Layer, Place, Problem, Target, fit, sites_and_reads
from passes.repair.folding import fold, unfold
from passes.repair.segments import OUTPUT, Segment, clamped, cuts, segments, with_results_named
from passes.statistics.batches import Batch, batches_of
from passes.statistics.divergence import tensors_out
from passes.statistics.moments import Moments
from passes.statistics.observing import evaluating, inputs_of, plain_recurrence
from passes.statistics.sites import Site
from passes.statistics.watching import Watcher
from passes.stream.graph_stream import as_arguments
from passes.stream.inference import composite_attention
from passes.stream.network_copies import apart, copied_network

log = logging.getLogger(__name__)
FEWEST = 2  # readings for each column of a weight, below which it is not fitted: it would follow noise
READINGS, SAMPLES = 200, 512  # a segment is fitted to so many readings for each column, and at least so many samples
VALUES = 2**24  # or to fewer samples, where those have so many values at its end: fitting holds several copies of them
Env = dict[str, Any]


@dataclass(frozen=True)
class SegmentRepair:
    """What refinement did between two cuts.

    last: its last node. parameters: those that were fitted. before, after: the share of the variance of the dense
    values there that the pruned network explains on held-out data. repaired: False where it keeps what it had; why: the
    reason.
    """

    last: str
    parameters: tuple[str, ...]
    before: float
    after: float
    repaired: bool
    why: str = ""


@dataclass(frozen=True)
class Refined:
    """The repaired network, and what was done to each segment."""

    network: fx.GraphModule
    segments: tuple[SegmentRepair, ...]


@tensors_with_values()
@torch.inference_mode(False)
def refine(
    pruned: fx.GraphModule, plan: Plan, dense: fx.GraphModule, batches: object, *, held: object = None,
    rounds: int = 3, iterations: int = 4, rows: int = 60000, seed: int = 0,
    progress: Callable[[SegmentRepair], None] | None = None,
) -> Refined:  # fmt: skip
    """Fit the weights of `pruned` so that it gives what `dense` gives, from the first segment to the last.

    plan: what made `pruned` of `dense`. batches: inputs to fit to; held: others that only judge (default: the last
    fifth of the batches' samples). A segment reads what the repaired network before it gives, and its targets are the
    dense network's own values; where a stream is added, this fits the dense sum without the pruned shortcut.
    A weight that reads fewer than twice as many values as it has columns is left as it is.
    rounds, iterations: of Gauss-Newton, and of conjugate gradients in each. A segment that gains nothing on held-out
    data keeps its weights, and says so. No label, no loss, no learning rate.

    Raises PassError where there is no data, and PlanError where the networks do not belong together.
    """
    graph = "a torch.fx.GraphModule; capture a module first"
    is_a(pruned, fx.GraphModule, "refine: pruned", graph)
    is_plan(plan, "refine: plan", "the Plan that made the pruned graph")
    is_a(dense, fx.GraphModule, "refine: dense", graph)
    given(pruned, "refine: pruned"), given(dense, "refine: dense")
    rounds, iterations = integer(rounds, "refine: rounds", least=0), integer(iterations, "refine: iterations", least=0)
    rows, seed = integer(rows, "refine: rows", least=1), integer(seed, "refine: seed", least=0, below=2**63)
    if progress is not None and not callable(progress):
        raise PassError(f"refine: progress: got {got(progress)}; expected a function of a SegmentRepair")
    coupling = recall(dense)
    if coupling is None:
        raise PlanError("refine: the dense graph has no coupling; couple it first")
    plan.check(coupling)
    _made_by(plan, coupling, pruned)
    made = copied_network(pruned)
    products = sdpa_kernel(SDPBackend.MATH)  # the only form of attention that has forward derivatives
    with apart(dense) as teacher, evaluating(made), composite_attention(), plain_recurrence(made), products:
        assert isinstance(made, fx.GraphModule) and isinstance(teacher, fx.GraphModule), "copies of graphs are graphs"
        fitted, judged = _split(teacher, coupling, batches, held)
        folded = fold(made)
        done = []
        try:
            run = _Run(teacher, made, coupling, plan, fitted, judged, rounds, iterations, rows, seed)
            for repair in run.all():
                done.append(repair)
                tell(progress, repair, "refine")
        finally:
            unfold(made, folded)
    return Refined(made, tuple(done))


def _made_by(plan: Plan, coupling: Coupling, pruned: fx.GraphModule) -> None:
    """PlanError where the sizes of `pruned` are not those that the plan leaves."""
    masks, axes = coupling.masks(plan), coupling.structure.tensors
    own = dict(owned_tensors(pruned))
    gone = coupling.tensors_gone(plan.removed_blocks)
    missing = next((name for name in coupling.aliases if name not in own and name not in gone), None)
    if missing is not None:
        raise PlanError(f"refine: the pruned graph has no {missing}; give the one that this plan made of the dense")
    for name, tensor in own.items():
        left = tuple(int(survivors(axis, masks).sum()) for axis in axes[name]) if name in axes else tuple(tensor.shape)
        if tuple(tensor.shape) != left:
            raise PlanError(
                f"refine: {name} has the shape {tuple(tensor.shape)} in the pruned graph, and the plan leaves {left}; "
                "give the graph that this plan made"
            )


def _split(dense: nn.Module, coupling: Coupling, batches: object, held: object) -> tuple[list[Batch], list[Batch]]:
    listed = list(batches_of(dense, batches, inputs_of(dense, coupling)))
    judged = None if held is None else list(batches_of(dense, held, inputs_of(dense, coupling)))
    if not listed or judged == []:
        raise PassError("refine: there is no batch; pass at least one")
    with torch.no_grad():
        for first in (listed[0], *(judged or listed)[:1]):
            first.run(dense)  # what does not run is said here, in words
    if judged is not None:
        return listed, judged
    if len(listed) >= 5:
        cut = len(listed) - len(listed) // 5
        return listed[:cut], listed[cut:]
    size = listed[-1].size
    if size >= 2:
        cut = max(1, size - max(1, size // 5 * len(listed) if len(listed) == 1 else size // 2))
        return [*listed[:-1], listed[-1].part(0, cut)], [listed[-1].part(cut, size)]
    if len(listed) < 2:
        raise PassError("refine: a single sample cannot be both fitted to and held out; pass at least two samples")
    return listed[:-1], listed[-1:]


def _leave(values: Env, names: set[str]) -> None:
    """Drop all values but those of `names`."""
    for name in values.keys() - names:
        del values[name]


@contextmanager
def _fitted(own: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[None]:
    """Gradients for these parameters inside the block; each one's own flag outside."""
    flags = {name: own[name].requires_grad for name in names}
    try:
        for name in names:
            own[name].requires_grad_(True)
        yield
    finally:
        for name, flag in flags.items():
            own[name].requires_grad_(flag)


class _Run:
    """One refinement: the values that are needed later, of both networks, for each batch."""

    def __init__(
        self, dense: fx.GraphModule, pruned: fx.GraphModule, coupling: Coupling, plan: Plan, fitted: list[Batch],
        judged: list[Batch], rounds: int, iterations: int, rows: int, seed: int,
    ) -> None:  # fmt: skip
        dense, pruned = with_results_named(dense), with_results_named(pruned)
        self.dense, self.pruned, self.coupling = dense, pruned, coupling
        self.masks = coupling.masks(plan)
        self.rounds, self.iterations, self.rows, self.seed = rounds, iterations, rows, seed
        self.cut = len(fitted)
        batches = [*fitted, *judged]
        self.samples = [batch.size for batch in batches]
        self.theirs: list[Env] = [self._start(dense, b) for b in batches]
        self.mine: list[Env] = [dict(env) for env in self.theirs]
        weighted = self._weighted_nodes(batches[0])
        ends = cuts(dense, pruned, weighted, {n for n, v in coupling.structure.values.items() if isinstance(v, Value)})
        self.pre = self._pre_activations(ends)
        extra = [source for source, _, _ in self.pre.values()]
        self.dense_segments = segments(dense, ends, extra)
        self.pruned_segments = segments(pruned, ends, extra)
        self.needed = self._needed_later()
        self.shared = self._shared_parameters()

    def _start(self, gm: fx.GraphModule, batch: Batch) -> Env:
        names = [str(n.target) for n in input_nodes(gm.graph)]
        given = dict(zip(names, batch.args, strict=False)) | dict(batch.kwargs)
        values = as_arguments({k: v for k, v in given.items() if k in names}, gm)
        env = {n.name: v for n, v in zip(input_nodes(gm.graph), values, strict=True)}
        for node in gm.graph.find_nodes(op="placeholder"):
            if node.name not in env:  # what ``*args`` and ``**kwargs`` gather
                env[node.name] = {} if str(node.target).startswith("**") else ()
        return env

    def _weighted_nodes(self, batch: Batch) -> list[str]:
        """The nodes of the pruned graph that contract a parameter, found by running a few samples."""
        small = (batch.part(0, 1) if batch.size else batch).copied()  # the network may write into its inputs
        watcher = Watcher(self.pruned)

        class Nodes(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                watcher.node = n.name
                return super().run_node(n)

        env = self._start(self.pruned, small)
        with torch.no_grad(), watcher:
            Nodes(self.pruned).run(*[env[n.name] for n in input_nodes(self.pruned.graph)], enable_io_processing=False)
        return [site.node for site in watcher.sites.values()]

    def _pre_activations(self, ends: Sequence[str]) -> dict[str, tuple[str, float, float]]:
        """For each cut behind a clamp what stands before the clamp, where both graphs agree."""
        found = {}
        theirs = {n.name: n for n in self.dense.graph.nodes}
        for node in self.pruned.graph.nodes:
            if node.name in ends:
                mine, dense = clamped(self.pruned, node), clamped(self.dense, theirs[node.name])
                if mine is None or dense is None or mine[0].name != dense[0].name or mine[1:] != dense[1:]:
                    continue
                if len(mine[0].users) == 1 and mine[0].op not in ("placeholder", "get_attr"):
                    found[node.name] = (mine[0].name, mine[1], mine[2])
        return found

    def _needed_later(self) -> list[set[str]]:
        later: set[str] = set()
        needed: list[set[str]] = []
        for mine, theirs in zip(reversed(self.pruned_segments), reversed(self.dense_segments), strict=True):
            needed.append(set(later))
            later |= set(mine.takes) | set(theirs.takes)
        return needed[::-1]

    def _shared_parameters(self) -> set[str]:
        """Parameters that more than one segment uses: fitting one would change the other."""
        owners: dict[int, set[int]] = {}
        names: dict[int, set[str]] = {}
        for number, segment in enumerate(self.pruned_segments):
            for name, parameter in segment.module.named_parameters(remove_duplicate=False):
                owners.setdefault(id(parameter), set()).add(number)
                names.setdefault(id(parameter), set()).add(name)
        return {name for key, used in owners.items() if len(used) > 1 for name in names[key]}

    def all(self):
        """Repair every segment in order."""
        for number, (theirs, mine) in enumerate(zip(self.dense_segments, self.pruned_segments, strict=True)):
            keep = self.needed[number]
            with torch.no_grad():
                values = [theirs.run(env) for env in self.theirs]
            places, targets, why = self._targets(mine, values)
            for found in values:
                _leave(found, keep)
            repair = self._one(mine, places, targets, why, number)
            if repair is not None:
                yield repair
            del targets
            with torch.no_grad():
                for env, known, found in zip(self.mine, self.theirs, values, strict=True):
                    given = mine.run(env)
                    for values_of, new in ((env, given), (known, found)):
                        values_of.update(new)
                        _leave(values_of, keep)

    def _one(
        self, mine: Segment, places: list[Place], targets: list[list[Target]], why: str, number: int
    ) -> SegmentRepair | None:
        last = mine.nodes[-1] if mine.nodes else ""
        inputs = [tuple(_plain(env[name]) for name in mine.takes) for env in self.mine]
        if not places:
            return SegmentRepair(last, (), np.nan, np.nan, False, why) if mine.nodes else None
        judge = Problem(mine.module, inputs[self.cut :], targets[self.cut :], places)
        cut = self._enough(Problem(mine.module, inputs[:1], targets[:1], places))
        problem = Problem(mine.module, inputs[:cut], targets[:cut], places)
        sites, moments = sites_and_reads(problem, self.rows, self.seed + number)
        layers = self._layers(mine, sites, moments)
        names = tuple(name for layer in layers for name in layer.names)
        own = dict(mine.module.named_parameters(remove_duplicate=False))
        start = {n: own[n].detach().clone() for n in names}
        before = total = np.nan
        with _fitted(own, names):
            moved = problem.moved() if names else []
            if not moved:
                return None
            try:
                judge, problem = judge.only(moved), problem.only(moved)
                total = sum(_spread(t) for targets in judge.targets for t in targets)
                before = judge.error(start)
                found, _ = fit(
                    problem, layers, moments, start, rounds=self.rounds, iterations=self.iterations,
                    seed=self.seed + number,
                )  # fmt: skip
                after = judge.error(found)
                why = "" if after < before else "fitted weights explain no more of held-out values"
            except (NotImplementedError, RuntimeError) as error:
                why = f"it cannot be fitted: {type(error).__name__}: {str(error).splitlines()[0]}"
                log.debug("segment before %s: %s", last, why)
        if why:
            self._put(own, start)
            return SegmentRepair(last, names, _share(before, total), _share(before, total), False, why)
        self._put(own, found)
        return SegmentRepair(last, names, _share(before, total), _share(after, total), True)

    def _enough(self, first: Problem) -> int:
        """To how many batches a segment is fitted: where each sample gives many readings, fewer samples do."""
        _, moments = sites_and_reads(first, 64, self.seed)
        each = max(1, self.samples[0])
        needed = max((READINGS * m.columns * each / max(m.count, 1.0) for m in moments.values()), default=SAMPLES)
        values = max(1, sum(t.value.numel() for t in first.targets[0]))
        total = np.cumsum([max(1, n) for n in self.samples[: self.cut]])
        return min(self.cut, 1 + int(np.searchsorted(total, max(needed, min(SAMPLES, VALUES * each / values)))))

    def _put(self, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    def _targets(self, mine: Segment, values: list[Env]) -> tuple[list[Place], list[list[Target]], str]:
        """Which outputs of a segment are compared, with what, and why none is."""
        places: list[Place] = []
        columns: list[list[Target]] = []
        why = "it gives nothing that both networks have"
        skipped = {source for source, _, _ in self.pre.values()}
        for name in mine.gives:
            low, high, compared = -float("inf"), float("inf"), name
            if name in skipped:
                continue
            if name in self.pre:
                compared, low, high = self.pre[name]
                if compared not in mine.gives:
                    compared, low, high = name, -float("inf"), float("inf")
            if name == OUTPUT:
                leaves = list(zip(*(tensors_out(found[OUTPUT]) for found in values), strict=False))
            else:
                parts = [self._surviving(compared, found.get(compared)) for found in values]
                leaves = [tuple(p for p in parts if p is not None)] if all(p is not None for p in parts) else []
            if not leaves:
                why = f"{name} holds no numbers whose surviving positions are known"
            for leaf, dense in enumerate(leaves):
                dense = tuple(t.detach() for t in dense)
                spread = sum(float((t - t.mean()).double().square().sum()) for t in dense[: self.cut])
                count = sum(t.numel() for t in dense[: self.cut])
                if spread > 0:
                    places.append((mine.gives.index(compared), leaf))
                    columns.append([Target(t, low, high, count / spread) for t in dense])
        return places, [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in values], why

    def _surviving(self, name: str, value: object) -> Tensor | None:
        """The dense value at the positions that the pruned network has."""
        known = self.coupling.structure.values.get(name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or not isinstance(known, Value):
            return None
        for dim, axis in enumerate(known.axes):
            remain = survivors(axis, self.masks)
            if not remain.all():
                if len(remain) != value.shape[dim]:
                    return None
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(remain)).to(value.device))
        return value

    def _layers(self, mine: Segment, sites: dict[str, Site], moments: Mapping[str, Moments]) -> list[Layer]:
        """The weights that can be fitted: used once, by this segment alone, on more readings than they have columns."""
        own = dict(mine.module.named_parameters(remove_duplicate=False))
        buffers = dict(mine.module.named_buffers(remove_duplicate=False))
        uses: dict[str, int] = {}
        for site in sites.values():
            uses[site.parameter] = uses.get(site.parameter, 0) + 1
        layers: list[Layer] = []
        taken: set[str] = set()
        for site in sites.values():
            weight = own.get(site.parameter)
            whole = weight is not None and site.groups * site.rows * site.columns == weight.numel()
            if weight is None or not whole or uses[site.parameter] > 1 or site.parameter in self.shared:
                continue
            if moments[site.name].count < FEWEST * site.columns:
                continue
            if not weight.is_floating_point() or weight.dtype not in (torch.float32, torch.float64):
                continue
            bias, scale = None, None
            norm = site.norm
            if site.bias and site.bias in own and own[site.bias].numel() == site.groups * site.rows:
                bias = site.bias
            elif norm is not None and norm.bias in own and norm.var in buffers:
                bias = norm.bias
                root = torch.rsqrt(buffers[norm.var].detach() + norm.eps)
                scale = root * own[norm.weight].detach() if norm.weight in own else root
            if bias in taken or bias in self.shared:
                bias, scale = None, None
            if bias is not None:
                taken.add(bias)
            layers.append(Layer(site, site.parameter, bias, scale))
        return layers


def _plain(value: object) -> object:
    return pytree.tree_map_only(Tensor, lambda t: t.detach(), value)


def _spread(target: Target) -> float:
    value = target.value.clamp(target.low, target.high).double()
    return float((value - value.mean()).square().sum()) * target.weight


def _share(error: float, total: float) -> float:
    return 1.0 - error / total if total > 0 else np.nan
