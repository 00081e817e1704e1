"""Repair a pruned network from what was observed of the dense one: closed form, no data, no step of training."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult

from passes.analysis.coupling import Coupling, recall
from passes.apply.cut_module import module_coupling_for
from passes.arguments import is_a, number
from passes.axes.index_sets import survivors
from passes.documents.plan import Plan, is_plan
from passes.errors import ArgumentError, PlanError
from passes.graph.annotations import forgetting_proofs
from passes.graph.given_networks import given
from passes.graph.module_copies import owned_tensors
from passes.process.settings import tensors_with_values
from passes.repair.closed_form import RIDGES, LayerRepair, Solved, solve
from passes.repair.judging import HeldInputs
from passes.repair.uses import Uses
from passes.statistics.record import Statistics
from passes.statistics.sites import Kept, Site, kept_of, remaining_elements
from passes.stream.network_copies import copied_network

_repairs: weakref.WeakKeyDictionary[nn.Module, tuple[LayerRepair, ...]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Compensate:
    """The pass: a copy of the pruned graph whose weights make good, as far as they can, for what `plan` removed.

    dense: the network that `statistics` were observed of and `plan` was made for; statistics that were not loaded
    from a file know it. Fits torch's PassManager.
    What was done to each layer: `repairs_of(result.graph_module)`.

    >>> from passes import PruneChannels, capture, couple
    >>> from passes.statistics import observe
    >>> gm = capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> coupling = couple(gm, torch.randn(1, 3))
    >>> plan, statistics = coupling.plan({"0": (0, 2, 5)}), observe(gm, coupling, [torch.randn(99, 3)])
    >>> repaired = Compensate(statistics, plan)(PruneChannels(plan)(gm).graph_module)
    >>> [repair.name for repair in repairs_of(repaired.graph_module)]
    ['2.weight']
    """

    statistics: Statistics
    plan: Plan
    dense: nn.Module | None = None
    ridges: tuple[float, ...] = RIDGES

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """PassResult(a repaired copy, True), or (gm, False) where no weight lost summands or gains by repair."""
        made = compensate(gm, self.statistics, self.plan, self.dense, ridges=self.ridges)
        return PassResult(made, made is not gm)


@tensors_with_values()
@torch.inference_mode(False)
@torch.no_grad()
def compensate(
    pruned: nn.Module, statistics: Statistics, plan: Plan, dense: nn.Module | None = None, *,
    ridges: tuple[float, ...] = RIDGES, inplace: bool = False,
) -> nn.Module:  # fmt: skip
    """A copy of `pruned` (a graph or any module) with repaired weights; `pruned` itself where there is nothing to do.

    dense: the network that `statistics` and `plan` are of; may be left out where `observe` made the statistics.
    Biases, and running means of batch norms that read an output directly, take up the constants. A layer whose repaired
    weights would explain no more of the dense output on held-out data than its slice does, keeps the slice, and so does
    a weight that something else reads as well (an embedding tied to it); `repairs_of` says so. Each layer is repaired
    for what it reads in the dense network; that all together bring the outputs nearer to the dense ones is tried on the
    inputs that `statistics` hold out (if they are not from a file): else half of every repair is applied, a quarter, or
    none. inplace: repair `pruned` itself, for which at most the weights that change are held twice.

    Raises PlanError where statistics, plan and networks do not belong together.
    """
    is_a(pruned, nn.Module, "compensate: pruned", "the network that the plan made")
    given(pruned, "compensate: pruned")
    is_a(statistics, Statistics, "compensate: statistics", "what observe(dense, ...) gives", PlanError)
    is_plan(plan, "compensate: plan", "the Plan that made the pruned network")
    if dense is not None:
        is_a(dense, nn.Module, "compensate: dense", "the network before pruning, or None")
        given(dense, "compensate: dense")
    ridges = _checked_ridges(ridges)
    dense = dense if dense is not None else statistics.network
    if dense is None:
        raise PlanError("compensate: statistics from a file hold no weights; pass the dense network as well")
    coupling = _coupling_of(dense, plan, statistics)
    masks = coupling.masks(plan)
    axes = coupling.structure.tensors
    gone = coupling.tensors_gone(plan.removed_blocks)
    sites = [site for site in statistics.sites.values() if coupling.aliases[site.parameter] not in gone]
    read = {name for site in sites for name in (site.parameter, site.bias) if name is not None}
    remain = {name: [survivors(axis, masks) for axis in axes[coupling.aliases[name]]] for name in read}
    weights, small, uses = dict(owned_tensors(dense)), dict(owned_tensors(pruned)), Uses(coupling, sites)
    repairs: list[LayerRepair] = []
    made, own = pruned, dict[str, Tensor]()
    slices: dict[str, Tensor] = {}  # of what is changed
    for site in sites:
        if all(positions.all() for positions in remain[site.parameter]):
            continue
        _check_size(site, remain[site.parameter], small)
        kept = kept_of(site, remain)
        elsewhere = uses.elsewhere(site) if kept is not None and kept.narrows else ""
        if kept is None or elsewhere:
            why = f"{elsewhere}, for which repaired weights would be other ones" if elsewhere else _UNEVEN
            repairs.append(LayerRepair(site.name, site.parameter, np.nan, np.nan, False, None, why))
        elif kept.narrows:
            takes = uses.takes_constants(site)
            whole = site.matrix(weights[site.parameter].detach())
            solved = solve(whole, statistics.of(site), kept, takes != "", ridges)
            repairs.append(_said(site, solved))
            if solved.ridge is None:
                continue
            if not own:
                judge = HeldInputs(statistics.held_inputs, dense, pruned)
                made = forgetting_proofs(pruned) if inplace else copied_network(pruned)
                own = {name: tensor.detach() for name, tensor in owned_tensors(made)}
            changed = [name for name in (site.parameter, takes) if name and name not in slices]
            slices |= {name: own[name].clone() if inplace else small[name] for name in changed}
            _put(own, site, kept, solved, remain, takes)
    share = judge.share_that_helps(made, slices) if own else 1.0
    _repairs[made] = tuple(repair.at(share) for repair in repairs)
    return made


def repairs_of(network: nn.Module) -> tuple[LayerRepair, ...]:
    """What compensation did to each layer of `network`, or why not; empty for a network that it did not return."""
    is_a(network, nn.Module, "repairs_of", "a torch.nn.Module")
    return _repairs.get(network, ())


def _checked_ridges(ridges: Iterable[float]) -> tuple[float, ...]:
    is_a(ridges, (list, tuple), "compensate: ridges", "a tuple of numbers")
    if not ridges:
        raise ArgumentError("compensate: ridges: got none; expected at least one number")
    return tuple(number(ridge, "compensate: ridges", least=0) for ridge in ridges)


_UNEVEN = "its units are chosen apart by row, so no one matrix remains"


def _coupling_of(dense: nn.Module, plan: Plan, statistics: Statistics) -> Coupling:
    if isinstance(dense, fx.GraphModule):
        known = recall(dense)
        if known is None:
            raise PlanError("compensate: the dense graph has no coupling; couple it first")
    else:
        known = module_coupling_for(dense, plan)
    plan.check(known)
    if statistics.fingerprint != plan.fingerprint.partition("+")[0] and statistics.fingerprint != plan.fingerprint:
        raise PlanError(
            f"the statistics are of network {statistics.fingerprint[:12]}, the plan is for {plan.fingerprint[:12]}; "
            "observe the network that the plan is for"
        )
    return known


def _check_size(site: Site, remain: list[np.ndarray], small: Mapping[str, Tensor]) -> None:
    expected = tuple(int(positions.sum()) for positions in remain)
    found = small.get(site.parameter)
    if found is None or tuple(found.shape) != expected:
        got = "absent" if found is None else f"of shape {tuple(found.shape)}"
        raise PlanError(
            f"compensate: {site.parameter} is {got} in the pruned network, and the plan leaves {expected}; "
            "give the network that this plan made"
        )


def _said(site: Site, solved: Solved) -> LayerRepair:
    why = "" if solved.ridge is not None else "repaired weights explain no more of held-out outputs than the slice"
    return LayerRepair(
        site.name, site.parameter, solved.before, solved.after, solved.ridge is not None, solved.ridge, why
    )


def _put(
    own: Mapping[str, Tensor], site: Site, kept: Kept, solved: Solved, remain: Mapping[str, list[np.ndarray]],
    takes: str,
) -> None:  # fmt: skip
    """Write solved weights where the pruned parameter holds them, and constants into what takes them up."""
    weight = own[site.parameter]
    if site.is_plain:
        weight.copy_(solved.weight[0])
    else:
        places = _places(site, kept, remain[site.parameter])
        flat = weight.contiguous().flatten()
        flat[places.flatten().to(flat.device)] = solved.weight.flatten().to(flat.device, flat.dtype)
        weight.copy_(flat.reshape(weight.shape))
    if not takes:
        return
    held = own[takes]
    shift = solved.shift.flatten().to(held.device, held.dtype)
    where = torch.arange(len(shift))
    if takes == site.bias and site.bias_layout is not None:
        shape = site.bias_layout.shape
        whole = site.bias_layout.of(torch.arange(int(np.prod(shape))).reshape(shape))
        chosen = whole.reshape(site.groups, site.rows)[torch.from_numpy(kept.rows)]
        where = _ranks(shape, remain[takes])[chosen]
    held.view(-1)[where.to(held.device)] += shift if site.bias else -shift


def _ranks(shape: Sequence[int], remain: list[np.ndarray]) -> Tensor:
    """For each element of a dense tensor (flat) its place in the pruned one, elements that stay being in order."""
    return torch.cumsum(remaining_elements(shape, remain).flatten(), 0) - 1


def _places(site: Site, kept: Kept, remain: list[np.ndarray]) -> Tensor:
    """The element of the pruned parameter (flat) at each kept group, row and column."""
    positions = site.positions()
    rank = _ranks(site.layout.shape, remain)
    parts = []
    for group in np.flatnonzero(kept.groups):
        rows = torch.from_numpy(np.flatnonzero(kept.rows[group]))
        columns = torch.from_numpy(np.flatnonzero(kept.columns[group]))
        parts.append(rank[positions[group][rows][:, columns]])
    return torch.stack(parts)
