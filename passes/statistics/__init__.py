"""What the weights of a network read, summed over data: the basis of ranking, of repair and of curves."""

from passes.statistics.batches import Batch, batches_of
from passes.statistics.held_samples import hold_out
from passes.statistics.moments import Moments
from passes.statistics.observing import observe
from passes.statistics.record import Statistics
from passes.statistics.sites import Site

__all__ = ["Batch", "Moments", "Site", "Statistics", "batches_of", "hold_out", "observe"]
