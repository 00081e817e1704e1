"""The longer path by which TinyNN's own modules import the pruner."""

from fxprune.pruner import NetAdaptPruner

__all__ = ["NetAdaptPruner"]
