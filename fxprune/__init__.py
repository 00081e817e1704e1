"""fxprune: structured pruning for PyTorch. NetAdapt as a torch.fx compiler pass that proves what it emits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.api import netadapt
    from fxprune.budget import Budget
    from fxprune.config import NetAdaptConfig
    from fxprune.errors import FxpruneError, InfeasibleBudget
    from fxprune.export import ExportError, ExportReport, export, load
    from fxprune.result import NetAdaptResult
    from fxprune.training import Accuracy, FineTune

__version__ = "0.1.0"

# Where each public name lives; imported when it is first asked for, so that `import fxprune` is instant.
_HOMES = {
    "Accuracy": "fxprune.training",
    "Budget": "fxprune.budget",
    "ExportError": "fxprune.export",
    "ExportReport": "fxprune.export",
    "FineTune": "fxprune.training",
    "FxpruneError": "fxprune.errors",
    "InfeasibleBudget": "fxprune.errors",
    "NetAdaptConfig": "fxprune.config",
    "NetAdaptResult": "fxprune.result",
    "export": "fxprune.export",
    "load": "fxprune.export",
    "netadapt": "fxprune.api",
}

__all__ = [
    "Accuracy",
    "Budget",
    "ExportError",
    "ExportReport",
    "FineTune",
    "FxpruneError",
    "InfeasibleBudget",
    "NetAdaptConfig",
    "NetAdaptResult",
    "export",
    "load",
    "netadapt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
