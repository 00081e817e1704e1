"""Structured pruning as torch.fx passes: capture, couple, cost, plan, prune, verify. Each can be used alone."""

from passes.analyse import couple
from passes.analysis.cost_model import Cost, cost
from passes.analysis.coupling import Coupling
from passes.analysis.groups import Coverage, Frozen, Group, Slice
from passes.analysis.residual_blocks import Block
from passes.apply.cut_module import apply_plan, plan_of
from passes.apply.prune_channels import PruneChannels
from passes.documents.certificate import Certificate
from passes.documents.plan import Plan
from passes.errors import ArgumentError, CaptureError, EquivalenceError, PassError, PlanError
from passes.frontend.choose import capture
from passes.ops import equation_rule, rule
from passes.repair import refine
from passes.repair.compensation import Compensate, compensate, repairs_of
from passes.statistics import Statistics, observe
from passes.verification.equivalence import verify

__all__ = [
    "ArgumentError", "Block", "CaptureError", "Certificate", "Compensate", "Cost", "Coupling", "Coverage",
    "EquivalenceError", "Frozen", "Group", "PassError", "Plan", "PlanError", "PruneChannels", "Slice", "Statistics",
    "apply_plan", "capture", "compensate", "cost", "couple", "equation_rule", "observe", "plan_of", "refine",
    "repairs_of", "rule", "verify",
]  # fmt: skip
