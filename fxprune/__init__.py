"""fxprune: structured pruning for PyTorch. NetAdapt as a torch.fx compiler pass that proves what it emits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from fxprune import data
    from fxprune.api import netadapt
    from fxprune.config.keys import NetAdaptConfig
    from fxprune.errors import FxpruneError, InfeasibleBudget
    from fxprune.exporters import ExportError, ExportReport, check_files, export, load, register_exporter
    from fxprune.exporters.checkpoint_folder import prune_checkpoint
    from fxprune.exporters.int8_stages import export_int8
    from fxprune.integrations.huggingface import from_pretrained, save_pretrained
    from fxprune.integrations.prune_pass import PrunePass
    from fxprune.io.empty_networks import empty_weights
    from fxprune.registries import (
        list_backends,
        list_criteria,
        list_exporters,
        list_resources,
        list_strategies,
        list_workers,
        register_backend,
        register_criterion,
        register_strategy,
        register_workers,
    )
    from fxprune.resources.budgets import Budget
    from fxprune.resources.kinds import register_resource
    from fxprune.search.long_training import FineTuned, finetune, train
    from fxprune.search.result import NetAdaptResult
    from fxprune.tinynn.pruner import NetAdaptPruner
    from fxprune.training.candidate import Accuracy, FineTune
    from fxprune.training.context import DLContext, get_device

# Where each public name lives; imported when it is first asked for, so that `import fxprune` is instant.
_HOMES = {
    "Accuracy": "fxprune.training.candidate",
    "Budget": "fxprune.resources.budgets",
    "DLContext": "fxprune.training.context",
    "ExportError": "fxprune.exporters",
    "ExportReport": "fxprune.exporters",
    "FineTune": "fxprune.training.candidate",
    "FineTuned": "fxprune.search.long_training",
    "FxpruneError": "fxprune.errors",
    "InfeasibleBudget": "fxprune.errors",
    "NetAdaptConfig": "fxprune.config.keys",
    "NetAdaptPruner": "fxprune.tinynn.pruner",
    "NetAdaptResult": "fxprune.search.result",
    "PrunePass": "fxprune.integrations.prune_pass",
    "check_files": "fxprune.exporters",
    "data": "fxprune",
    "empty_weights": "fxprune.io.empty_networks",
    "export": "fxprune.exporters",
    "export_int8": "fxprune.exporters.int8_stages",
    "finetune": "fxprune.search.long_training",
    "from_pretrained": "fxprune.integrations.huggingface",
    "get_device": "fxprune.training.context",
    "list_backends": "fxprune.registries",
    "list_criteria": "fxprune.registries",
    "list_exporters": "fxprune.registries",
    "list_resources": "fxprune.registries",
    "list_strategies": "fxprune.registries",
    "list_workers": "fxprune.registries",
    "load": "fxprune.exporters",
    "netadapt": "fxprune.api",
    "prune_checkpoint": "fxprune.exporters.checkpoint_folder",
    "register_backend": "fxprune.registries",
    "register_criterion": "fxprune.registries",
    "register_exporter": "fxprune.exporters",
    "register_resource": "fxprune.resources.kinds",
    "register_strategy": "fxprune.registries",
    "register_workers": "fxprune.registries",
    "save_pretrained": "fxprune.integrations.huggingface",
    "train": "fxprune.search.long_training",
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
    "empty_weights",
    "export",
    "export_int8",
    "finetune",
    "from_pretrained",
    "get_device",
    "list_backends",
    "list_criteria",
    "list_exporters",
    "list_resources",
    "list_strategies",
    "list_workers",
    "load",
    "netadapt",
    "prune_checkpoint",
    "register_backend",
    "register_criterion",
    "register_exporter",
    "register_resource",
    "register_strategy",
    "register_workers",
    "save_pretrained",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"fxprune.{name}") if home == "fxprune" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
