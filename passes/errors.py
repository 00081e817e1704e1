"""What the passes raise: one base class, one subclass for each stage that can refuse."""

from __future__ import annotations

from collections.abc import Sequence


class PassError(Exception):
    """Base of every error that a pass raises on purpose; its text says what, where and what to do."""


class ArgumentError(PassError, TypeError, ValueError):
    """What was handed to a pass is of a wrong kind, or outside of what it may be."""


class CaptureError(PassError):
    """A model that cannot be turned into a graph. `found` says what and where, `advice` what to try."""

    def __init__(self, found: str, advice: Sequence[str] = ()) -> None:
        super().__init__(f"{found}. To try: {'; '.join(advice)}" if advice else found)
        self.found = found
        self.advice = tuple(advice)


class NotInAGraph(CaptureError):
    """What the model does is nothing that this kind of graph can say; another front end is tried, if there is one."""


class DoesNotRun(PassError):
    """A module that fails on the example inputs, before anything is known of it."""


class PlanError(PassError, ValueError):
    """A plan that does not fit its network."""


class SizeError(PassError, RuntimeError):
    """A call in a pruned module's program of which nobody knows the sizes."""


class EquivalenceError(PassError):
    """A pruned network that does not compute what the masked one does."""


class PrecisionError(EquivalenceError):
    """A pruned network that computes what the masked one does in double precision, and fails in its own types, where
    the dense one runs."""


class SpecialisedWarning(UserWarning):
    """A graph that computes one case of what its module computes; the text says which."""
