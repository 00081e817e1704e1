"""fxprune: structured pruning for PyTorch. NetAdapt as a torch.fx compiler pass that proves what it emits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from fxprune import data as data
    from fxprune.api import netadapt as netadapt
    from fxprune.config.keys import NetAdaptConfig as NetAdaptConfig
    from fxprune.errors import FxpruneError as FxpruneError
    from fxprune.errors import InfeasibleBudget as InfeasibleBudget
    from fxprune.exporters import ExportError as ExportError
    from fxprune.exporters import ExportReport as ExportReport
    from fxprune.exporters import check_files as check_files
    from fxprune.exporters import export as export
    from fxprune.exporters import load as load
    from fxprune.exporters import register_exporter as register_exporter
    from fxprune.exporters.checkpoint_folder import prune_checkpoint as prune_checkpoint
    from fxprune.exporters.int8_stages import export_int8 as export_int8
    from fxprune.integrations.huggingface import from_pretrained as from_pretrained
    from fxprune.integrations.huggingface import save_pretrained as save_pretrained
    from fxprune.integrations.prune_pass import PrunePass as PrunePass
    from fxprune.io.empty_networks import empty_weights as empty_weights
    from fxprune.registries import list_backends as list_backends
    from fxprune.registries import list_criteria as list_criteria
    from fxprune.registries import list_exporters as list_exporters
    from fxprune.registries import list_resources as list_resources
    from fxprune.registries import list_strategies as list_strategies
    from fxprune.registries import list_workers as list_workers
    from fxprune.registries import register_backend as register_backend
    from fxprune.registries import register_criterion as register_criterion
    from fxprune.registries import register_strategy as register_strategy
    from fxprune.registries import register_workers as register_workers
    from fxprune.resources.budgets import Budget as Budget
    from fxprune.resources.kinds import register_resource as register_resource
    from fxprune.search.long_training import FineTuned as FineTuned
    from fxprune.search.long_training import finetune as finetune
    from fxprune.search.long_training import train as train
    from fxprune.search.result import NetAdaptResult as NetAdaptResult
    from fxprune.tinynn.pruner import NetAdaptPruner as NetAdaptPruner
    from fxprune.training.candidate import Accuracy as Accuracy
    from fxprune.training.candidate import FineTune as FineTune
    from fxprune.training.context import DLContext as DLContext
    from fxprune.training.context import get_device as get_device

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

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"fxprune.{name}") if home == "fxprune" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
