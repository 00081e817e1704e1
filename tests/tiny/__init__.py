"""Tiny networks, one a row: what people write between two layers, and what fxprune makes of it."""

from tiny import gating, layout, picks, sources, tokens, views, weights  # noqa: F401  (importing a file enters its networks)
from tiny.table import TABLE

__all__ = ["TABLE"]
