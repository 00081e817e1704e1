"""Layers and functions of other packages in written source: imported, or refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import Cnn, inputs_of
from torch import Tensor, fx, nn
from written_source import traced, written

from fxprune.exporters import ExportError, export

LEAVES = """
import torch
from torch import fx, nn

@fx.wrap
def doubled(x, by=2):
    return x * by

class Halved(nn.Module):
    def __init__(self, size, name="h"):
        super().__init__()
        self.size, self.name = size, name
        self.weight = nn.Parameter(torch.rand(size))
    def forward(self, x):
        return x * self.weight / (2 if self.training else 1)

class Secret(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
    def forward(self, x):
        return x * self.weight
"""


@pytest.fixture
def leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "export_leaves.py").write_text(LEAVES)
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("export_leaves")
    yield module
    del sys.modules["export_leaves"]


def test_leaves_and_functions_of_other_packages_are_imported(leaves: Any, tmp_path: Path) -> None:
    class Wrapper(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return leaves.doubled(super().forward(x))

    text, module, _ = written(
        traced(nn.Sequential(leaves.Halved(3, name="other"), nn.ReLU())), torch.randn(2, 3), tmp_path
    )
    assert "from export_leaves import Halved\n" in text and 'Halved(3, name="other")' in text
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(leaves.doubled, (x,), {"by": 3}))
    text, _, _ = written(fx.GraphModule(nn.Module(), graph), torch.randn(2, 3), tmp_path)
    assert "from export_leaves import doubled\n" in text and "doubled(x, by=3)" in text


def test_a_model_that_is_no_graph_is_captured_or_refused(tmp_path: Path) -> None:
    class Wild(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    assert export(Cnn(), inputs_of(Cnn()), tmp_path / "net.py").dynamic_batch
    with pytest.raises(ExportError, match="this model cannot be captured"):
        export(Wild(), torch.randn(2, 3), tmp_path / "wild.py")


def test_what_cannot_be_imported_or_built_is_refused(leaves: Any, tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    path, given = tmp_path / "net.py", torch.randn(2, 3)
    with pytest.raises(ExportError, match=r"0 \(export_leaves\.Secret\): its constructor needs 'size'"):
        export(traced(nn.Sequential(leaves.Secret(3))), given, path)
    with pytest.raises(ExportError, match="cannot be imported"):
        export(traced(nn.Sequential(Local())), given, path)
    Local.__module__ = "passes.made_up"
    with pytest.raises(ExportError, match="let capture trace through it"):
        export(traced(nn.Sequential(Local())), given, path)
    hooked = nn.Sequential(nn.Linear(3, 4))
    hooked[0].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ExportError, match="has forward pre hooks"):
        export(fx.symbolic_trace(hooked), given, path)
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(ExportError, match="remove_parametrizations"):
        export(fx.symbolic_trace(normed), given, path)
    assert not path.exists()
