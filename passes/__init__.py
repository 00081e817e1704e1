"""Structured pruning as torch.fx passes: capture, couple, cost, plan, prune, verify. Each can be used alone."""

from passes.apply_plan import apply_plan, plan_of
from passes.capture import capture
from passes.certificate import Certificate
from passes.compensate import Compensate, compensate, repairs_of
from passes.cost import Cost, cost
from passes.coupling import Coupling, Coverage, Frozen, Group, Slice, couple
from passes.errors import ArgumentError, CaptureError, EquivalenceError, PassError, PlanError
from passes.ops import equation_rule, rule
from passes.plan import Plan
from passes.prune import PruneChannels
from passes.refinement import refine
from passes.statistics import Statistics, observe
from passes.verify import verify

__all__ = [
    "ArgumentError", "CaptureError", "Certificate", "Compensate", "Cost", "Coupling", "Coverage", "EquivalenceError",
    "Frozen", "Group", "PassError", "Plan", "PlanError", "PruneChannels", "Slice", "Statistics", "apply_plan",
    "capture", "compensate", "cost", "couple", "equation_rule", "observe", "plan_of", "refine", "repairs_of", "rule",
    "verify",
]  # fmt: skip
