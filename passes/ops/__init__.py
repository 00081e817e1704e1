"""What each ATen operator says about axes and multiply-accumulates: one rule an operator, one file a family."""

from passes.ops import (  # noqa: F401  (importing a family registers its rules)
    contraction,
    factories,
    fourier,
    indexing,
    joining,
    normalization,
    parts,
    pointwise,
    reduction,
    routing,
    spatial,
    views,
    views_on_meta,
)
from passes.ops.call import Call, Record, Slot, Value, signature, spelled
from passes.ops.equation import equation_rule, solve
from passes.ops.references import Masked
from passes.ops.table import DuplicateRule, Traits, find, rule, states, traits_of, unregister

__all__ = [
    "Call",
    "DuplicateRule",
    "Masked",
    "Record",
    "Slot",
    "Traits",
    "Value",
    "equation_rule",
    "find",
    "rule",
    "signature",
    "solve",
    "spelled",
    "states",
    "traits_of",
    "unregister",
]
