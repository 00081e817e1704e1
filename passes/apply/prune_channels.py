"""`PruneChannels`, the rewriting pass: a new GraphModule without the units that a plan removes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from passes.analyse import couple, with_blocks
from passes.analysis.coupling import Coupling, recall, remember
from passes.arguments import is_a
from passes.documents.described_values import examples
from passes.documents.plan import Plan, is_plan
from passes.errors import PassError, PlanError
from passes.frontend.fidelity import settle
from passes.graph.annotations import facts_of, note
from passes.graph.given_networks import given
from passes.graph.nodes import input_nodes
from passes.process.garbage import collector_paused
from passes.process.state import leaves_no_trace
from passes.transform.rewriting import Rewriting


@dataclass(frozen=True)
class PruneChannels:
    """The pass: removes what `plan` removes, and leaves the graph that it is given untouched.

    Every parameter and buffer of the result is a fresh, sliced copy (dtype, device, requires_grad, ties and memory
    format kept), module attributes and static sizes in the graph follow. Fits torch's PassManager.

    >>> import torch; from torch import nn
    >>> from passes import PruneChannels, capture, couple
    >>> gm = capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> plan = couple(gm, torch.randn(1, 3)).plan({"0": (0, 2, 5)})
    >>> PruneChannels(plan)(gm).graph_module.get_submodule("0")
    Linear(in_features=3, out_features=3, bias=True)
    """

    plan: Plan

    @leaves_no_trace
    @collector_paused()
    @torch.inference_mode(False)
    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Returns PassResult(new graph module, True), or (gm, False) where the plan removes nothing.

        Raises PlanError where the plan was made for another graph, or holds what no plan holds (a unit twice, or none).
        """
        is_plan(self.plan, "PruneChannels: plan", "a Plan, which coupling.plan(...) makes")
        is_a(gm, fx.GraphModule, "PruneChannels", "a GraphModule (capture makes one); apply_plan takes any module")
        given(gm, "PruneChannels")
        settle(gm)
        coupling = coupling_for(gm, self.plan)
        self.plan.check(coupling)
        if not self.plan.narrows:
            return PassResult(gm, False)
        masks = coupling.masks(self.plan)
        rewriting = Rewriting(gm, coupling, masks)
        if rewriting.refused:
            axis, reason = rewriting.refused[0]
            raise PassError(f"{reason}; the analysis promised that {axis} can shrink, which is a defect of fxprune")
        pruned = rewriting.build(self.plan.removed_blocks)
        remember(pruned, coupling.after(self.plan, rewriting.numbers))
        earlier = plan_of(gm)
        chained = earlier is not None and earlier.result_fingerprint == self.plan.fingerprint
        note(pruned, plan=earlier.then(self.plan) if earlier is not None and chained else self.plan)
        return PassResult(pruned, True)


def coupling_for(gm: fx.GraphModule, plan: Plan) -> Coupling:
    """The coupling of `gm`: the known one, or one made for the input shapes that the plan carries."""
    known = recall(gm)
    if known is None or known.fingerprint != plan.fingerprint:
        if plan.calls_a_module and len(input_nodes(gm.graph)) != len(plan.inputs):
            raise PlanError(
                f"the plan is for module {plan.fingerprint[:12]}, got a graph; make a plan for the graph "
                "itself with couple(gm, example_inputs), or apply this one to the module (passes.apply_plan)"
            )
        known = couple(gm, examples(plan.inputs, "meta"))
    return with_blocks(gm, known) if plan.removed_blocks else known


def plan_of(gm: fx.GraphModule) -> Plan | None:
    """The plan that made `gm`, relative to the graph that was last coupled; None for one that no plan made."""
    return facts_of(gm).plan
