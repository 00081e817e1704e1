"""The errors that fxprune raises: each says what, where, got and expected, and what to do."""

from __future__ import annotations


class FxpruneError(Exception):
    """Base of every error that fxprune raises on purpose."""


class BudgetError(FxpruneError, ValueError):
    """A budget has a value that no network could be asked to meet."""


class BudgetTypeError(BudgetError, TypeError):
    """A budget is not a number, a Budget or a list of these."""


class InfeasibleBudget(BudgetError):
    """A budget that the schedule or the least widths cannot reach; `nearest` is the closest that they can.

    `nearest` is `{resource: value}` in absolute numbers, for the budgets that cannot be met.
    """

    def __init__(self, message: str, nearest: dict[str, float]):
        super().__init__(message)
        self.nearest = nearest


class ConfigError(FxpruneError, ValueError):
    """A configuration holds an unknown key or a value outside its range."""


class InputError(FxpruneError, ValueError):
    """What was handed to `netadapt` cannot be pruned, run or trained."""


class WeightError(FxpruneError, ValueError):
    """A weight holds NaN or infinity, so its units have no order of importance."""


class SearchError(FxpruneError, RuntimeError):
    """A round ended without a network: every candidate of it failed."""


class WorkerError(FxpruneError, RuntimeError):
    """Workers could not be started, or what they need cannot be sent to them."""


class JournalError(FxpruneError, RuntimeError):
    """A working folder cannot be used: locked, damaged, full, read-only, or of another run."""


class TrustError(FxpruneError, RuntimeError):
    """The folder of a search names code that the user has not said to trust; nothing was imported."""


class ExportError(FxpruneError):
    """A network that cannot be written in the wanted form, or whose written form computes something else."""


class SourceError(FxpruneError, ValueError):
    """A model or an input that cannot be made from what was written."""


class PluginWarning(UserWarning):
    """An installed package says that it adds to fxprune, and could not be loaded."""
