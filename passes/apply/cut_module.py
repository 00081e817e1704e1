"""A plan applied to what the user brought: a graph gives a graph, a module a cut copy of its own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from passes.analyse import couple, with_blocks
from passes.analysis.coupling import Coupling
from passes.apply.prune_channels import PruneChannels
from passes.apply.prune_channels import plan_of as plan_of_graph
from passes.arguments import is_a
from passes.documents.plan import Plan, is_plan
from passes.errors import PlanError
from passes.graph.annotations import Annotation
from passes.graph.given_networks import given
from passes.graph.module_copies import copy_module, modules_of, owned_tensors
from passes.process.garbage import collector_paused
from passes.process.state import leaves_no_trace
from passes.process.torch_private import buffers_of, parameters_of
from passes.stream.call_arguments import example_of
from passes.stream.skipped_branches import detach
from passes.transform.module_sizes import fit
from passes.transform.slicing import Slicing
from passes.trial.module_groups import recall_module, remember_module

_PROVENANCE = "_fxprune_provenance"


class Provenance(Annotation):
    """Which plan made a module; kept in its `__dict__`. The coupling is not pickled."""

    def __init__(self, plan: Plan, coupling: Coupling | None) -> None:
        self.plan, self.coupling = plan, coupling

    def __getstate__(self) -> dict[str, object]:
        return {"plan": self.plan, "coupling": None}


@leaves_no_trace
@collector_paused()
@torch.inference_mode(False)
def apply_plan(network: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module:
    """`network` without the units that `plan` removes.

    A GraphModule gives a GraphModule (see `PruneChannels`). Any other module gives a copy of its own class with every
    attribute, buffer, method and hook of a module (those of parameters are lost, as in a deep copy); parameters are
    sliced, ties, data types, devices and `requires_grad` are kept, and sizes in layers and attributes follow. Only
    `nn.MultiheadAttention` whose heads shrink becomes a subclass of itself (`passes.stream.head_attention`), since it
    cannot hold them. `inplace`: cut the module itself, not a copy.

    Raises PlanError where the plan was made for another network, or holds what no plan holds (a unit twice, or none).

    >>> from passes import couple
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan = couple(net, torch.randn(1, 3)).plan({"0": (0, 2, 5)})
    >>> apply_plan(net, plan)[0]
    Linear(in_features=3, out_features=3, bias=True)
    """
    is_plan(plan, "apply_plan: plan", "a Plan, which couple(...).plan(...) makes")
    is_a(network, nn.Module, "apply_plan", "a torch.nn.Module or a torch.fx.GraphModule")
    given(network, "apply_plan")
    if isinstance(network, fx.GraphModule):
        if inplace:
            raise PlanError("apply_plan: a graph is rewritten into a new one; leave inplace out for a GraphModule")
        return PruneChannels(plan)(network).graph_module
    coupling = module_coupling_for(network, plan)
    plan.check(coupling)
    assert coupling.module is not None, "it was made for a module"
    slicing = Slicing(coupling, coupling.masks(plan))
    cut = _cut_in_place(network, slicing) if inplace else copy_module(network, slicing.kept)
    fit(cut, slicing, coupling.module.edits, coupling.module.literals)
    for name in plan.removed_blocks:
        for detached in coupling.blocks[name].taken:
            detach(cut, detached)
    if plan.narrows:
        earlier = plan_of(network)
        chained = earlier is not None and earlier.result_fingerprint == plan.fingerprint  # else coupled anew since
        made = earlier.then(plan) if earlier is not None and chained else plan
        after = coupling.after(plan)
        cut.__dict__[_PROVENANCE] = Provenance(made, after)
        remember_module(cut, after)
    return cut


def plan_of(network: nn.Module) -> Plan | None:
    """The plan that made `network`, relative to the network that was last coupled; None for one that no plan made.

    Plans of `coupling.after(plan)`, each applied to what the one before made, are one plan for the first network. A
    pruned network that is coupled anew (by `couple`, or by a second `netadapt`) is a first one itself: what is pruned
    of it has a plan relative to it, which does not fit the network before.
    """
    is_a(network, nn.Module, "plan_of", "a torch.nn.Module or a torch.fx.GraphModule")
    if isinstance(network, fx.GraphModule):
        return plan_of_graph(network)
    provenance = network.__dict__.get(_PROVENANCE)
    return provenance.plan if isinstance(provenance, Provenance) else None


def module_coupling_for(module: nn.Module, plan: Plan) -> Coupling:
    """The coupling of `module`: the known one, or one made for the input shapes that the plan carries."""
    known = recall_module(module)
    provenance = module.__dict__.get(_PROVENANCE)
    if known is None and isinstance(provenance, Provenance):
        known = provenance.coupling
    if known is not None and known.fingerprint == plan.fingerprint:
        return with_blocks(module, known) if plan.removed_blocks else known
    if not plan.calls_a_module:
        raise PlanError(
            f"the plan is for graph {plan.fingerprint[:12]}, got a {type(module).__name__}; make a plan for the module "
            "itself with couple(module, example_inputs), or apply this one to its graph (capture)"
        )
    return couple(module, example_of(plan.inputs), depth=bool(plan.removed_blocks))


def _cut_in_place(module: nn.Module, slicing: Slicing) -> nn.Module:
    """Replace every tensor of `module` by its kept positions; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    names: Mapping[int, str] = {id(tensor): name for name, tensor in reversed(owned_tensors(module))}
    for part in dict.fromkeys(modules_of(module).values()):
        holders: tuple[Any, ...] = (parameters_of(part), buffers_of(part), part.__dict__)
        for held in holders:
            for name, tensor in list(held.items()):
                if isinstance(tensor, torch.Tensor):
                    if id(tensor) not in made:
                        made[id(tensor)] = slicing.kept(names[id(tensor)], tensor)
                    held[name] = made[id(tensor)]
    return module
