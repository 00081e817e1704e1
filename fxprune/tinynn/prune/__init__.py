"""Where TinyNN has its pruners."""

from fxprune.pruner import NetAdaptPruner

__all__ = ["NetAdaptPruner"]
