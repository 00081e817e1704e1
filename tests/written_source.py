"""Networks written as Python source, for tests: exported, and imported again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from export_nets import Cnn
from torch import Tensor, fx, nn

from fxprune.exporters import ExportReport, export
from passes import PruneChannels, capture, couple


def pruned(model: nn.Module, example: Any) -> fx.GraphModule:
    gm = capture(model, example)
    coupling = couple(gm, example)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    return PruneChannels(plan)(gm).graph_module


def imported(path: Path) -> Any:
    """The written file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(model: nn.Module, example: Any, folder: Path, **options: Any) -> tuple[str, Any, ExportReport]:
    """Export `model` (traced as it is, if it is no graph): the text, the module, the report."""
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    report = export(gm, example, folder / "net.py", **options)
    return (folder / "net.py").read_text(), imported(folder / "net.py"), report


class Live(nn.Module):
    """Reads `training` itself, at two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Cnn()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.5, self.training)


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (Cnn, nn.Sequential, Live)) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, LeafTracer().trace(model))
