"""Where TinyNN has its pruners."""

from fxprune.tinynn.pruner import NetAdaptPruner

__all__ = ["NetAdaptPruner"]
