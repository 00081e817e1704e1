"""fxprune: structured pruning for PyTorch. NetAdapt as a torch.fx compiler pass that proves what it emits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune import data
    from fxprune.api import netadapt
    from fxprune.budget import Budget
    from fxprune.config import NetAdaptConfig
    from fxprune.context import DLContext, get_device
    from fxprune.errors import FxpruneError, InfeasibleBudget
    from fxprune.export import ExportError, ExportReport, check_files, export, load
    from fxprune.long_training import FineTuned, finetune, train
    from fxprune.pipeline import PrunePass
    from fxprune.pruner import NetAdaptPruner
    from fxprune.result import NetAdaptResult
    from fxprune.training import Accuracy, FineTune

__version__ = "0.1.0"

# Where each public name lives; imported when it is first asked for, so that `import fxprune` is instant.
_HOMES = {
    "Accuracy": "fxprune.training",
    "Budget": "fxprune.budget",
    "DLContext": "fxprune.context",
    "ExportError": "fxprune.export",
    "ExportReport": "fxprune.export",
    "FineTune": "fxprune.training",
    "FineTuned": "fxprune.long_training",
    "FxpruneError": "fxprune.errors",
    "InfeasibleBudget": "fxprune.errors",
    "NetAdaptConfig": "fxprune.config",
    "NetAdaptPruner": "fxprune.pruner",
    "NetAdaptResult": "fxprune.result",
    "PrunePass": "fxprune.pipeline",
    "check_files": "fxprune.export",
    "data": "fxprune",
    "export": "fxprune.export",
    "finetune": "fxprune.long_training",
    "get_device": "fxprune.context",
    "load": "fxprune.export",
    "netadapt": "fxprune.api",
    "train": "fxprune.long_training",
}

__all__ = [
    "Accuracy",
    "Budget",
    "DLContext",
    "ExportError",
    "ExportReport",
    "FineTune",
    "FineTuned",
    "FxpruneError",
    "InfeasibleBudget",
    "NetAdaptConfig",
    "NetAdaptPruner",
    "NetAdaptResult",
    "PrunePass",
    "check_files",
    "data",
    "export",
    "finetune",
    "get_device",
    "load",
    "netadapt",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"fxprune.{name}") if home == "fxprune" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
