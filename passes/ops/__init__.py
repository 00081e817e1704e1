"""What each ATen operator says about axes and multiply-accumulates: one rule an operator, one file a family."""

from passes.ops import (  # noqa: F401  (importing a family registers its rules)
    contraction,
    factories,
    fourier,
    indexing,
    joining,
    normalization,
    pointwise,
    reduction,
    spatial,
    views,
)
from passes.ops.equation import equation_rule, solve
from passes.ops.registry import Call, DuplicateRule, Record, Slot, Value, find, rule, spelled, unregister, zeros_of

__all__ = [
    "Call",
    "DuplicateRule",
    "Record",
    "Slot",
    "Value",
    "equation_rule",
    "find",
    "rule",
    "solve",
    "spelled",
    "unregister",
    "zeros_of",
]
