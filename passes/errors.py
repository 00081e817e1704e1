"""What the passes raise: one base class, one subclass for each stage that can refuse."""


class PassError(Exception):
    """Base of every error that a pass raises on purpose; its text says what, where and what to do."""


class ArgumentError(PassError, TypeError, ValueError):
    """What was handed to a pass is of a wrong kind, or outside of what it may be."""


class CaptureError(PassError):
    """A model that cannot be turned into a graph."""


class PlanError(PassError, ValueError):
    """A plan that does not fit its network."""


class EquivalenceError(PassError):
    """A pruned network that does not compute what the masked one does."""
