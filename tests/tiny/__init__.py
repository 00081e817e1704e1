"""Tiny networks, one a row: what people write between two layers, and what fxprune makes of it."""

# Importing a file enters its networks.
from tiny import gating, heads, layout, picks, sources, tokens, views, weights  # noqa: F401
from tiny.table import TABLE

__all__ = ["TABLE"]
