"""Repair of a pruned graph on its own inputs: cut into segments, each fitted to the dense network's values."""

from passes.repair.refining import Refined, SegmentRepair, refine

__all__ = ["Refined", "SegmentRepair", "refine"]
