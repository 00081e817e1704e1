"""The longer path by which TinyNN's own modules import the pruner."""

from fxprune.tinynn.pruner import NetAdaptPruner

__all__ = ["NetAdaptPruner"]
