"""Names and constants in written source: of every kind, and awkward ones."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from written_source import written

from fxprune.exporters import ExportError, export
from fxprune.exporters.source.literals import Imports, literal
from passes import capture


class Constants(nn.Module):
    """Arguments of every kind that a graph may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> dict[str, Any]:
        y = F.linear(x, self.weight).to(torch.float64, memory_format=torch.contiguous_format)
        y = torch.clamp(y, min=-float("inf"), max=1e9)[..., None, 1:3:1]
        z = y.new_full((2, 1), float("nan"), device=torch.device("cpu"))
        y = -y * scale + y**2 - (y - 1) * (y + -2)
        parts = torch.split(y, [1, 1], dim=-1)
        y = y.reshape(torch.Size((-1, 2)))
        y[:, 0] = 3
        return {"y": (y, [parts[0], parts[1]]), "z": z[0], "s": x.shape[1] + 1, "strided": x[::2].contiguous()}


def test_constants_of_every_kind(tmp_path: Path) -> None:
    gm = capture(Constants(), torch.randn(3, 6))
    text, module, _ = written(gm, torch.randn(3, 6), tmp_path, dynamic_batch=False)
    for part in ("-math.inf", "[..., None, 1:3:1]", "x[::2]", "scale=2.0", "mask=None"):
        assert part in text
    for part in ("torch.float64", "torch.contiguous_format", "math.nan", 'torch.device("cpu")', " = -y"):
        assert part in text
    assert module.load()(torch.randn(4, 6))["z"].isnan().all()


def test_values_as_text() -> None:
    imports = Imports()
    for value, text in [
        (torch.Size((1, 2)), "torch.Size((1, 2))"),
        ((1,), "(1,)"),
        ({"a": [None, Ellipsis]}, '{"a": [None, ...]}'),
        (complex(1, -2), "complex(1.0, -2.0)"),
        (torch.channels_last, "torch.channels_last"),
        (torch.strided, "torch.strided"),
        (torch.device("cuda:1"), 'torch.device("cuda:1")'),
        (slice(None, 3), "slice(None, 3, None)"),
        (range(2, 5), "range(2, 5, 1)"),
        (np.int64(3), "3"),
        ("it's", '"it\'s"'),
        ('"', "'\"'"),
        (F.gelu, "F.gelu"),
        (torch.linalg.norm, "torch.linalg.norm"),
        (torch.Tensor.add, "torch.Tensor.add"),
        (operator.iadd, "operator.iadd"),
        (math.sqrt, "math.sqrt"),
        (nn.ReLU, "nn.ReLU"),
        (torch.ops.aten.topk.default, "torch.ops.aten.topk.default"),
    ]:
        assert literal(value, imports, "here") == text
    assert imports.standard() == ["import math", "import operator"]
    for refused in (torch.zeros(1), object(), lambda x: x, torch.Generator()):
        with pytest.raises(ExportError, match="here"):
            literal(refused, imports, "here")


class Names(nn.Module):
    """Names that a text could trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.Container = nn.Linear(3, 4)
        self.holder = nn.ModuleDict({"torch": nn.Linear(4, 5), "self": nn.ReLU()})
        self.operator = nn.Linear(5, 6)
        self.sparse = nn.ModuleDict({"3": nn.Linear(6, 6), "40": nn.Linear(6, 2)})

    def forward(self, l: Tensor, y: Tensor) -> Tensor:  # noqa: E741
        x = self.operator(self.holder["self"](self.holder["torch"](self.Container(l))))
        return self.sparse["40"](self.sparse["3"](x)) + y


def test_awkward_names(tmp_path: Path) -> None:
    gm = fx.symbolic_trace(Names())
    text, module, _ = written(gm, (torch.randn(2, 3), torch.randn(2, 2)), tmp_path)
    assert "def forward(self, l, y):  # noqa: E741" in text
    assert set(module.load().state_dict()) == set(gm.state_dict())
    with pytest.raises(ExportError, match="no Python module can be called"):
        export(gm, (torch.randn(2, 3), torch.randn(2, 2)), tmp_path / "my-net.py")


HIDING = ["l", "O", "nn", "F", "math", "operator", "Path", "sha256", "load", "Container", "Network", "print", "x1", "é"]


@pytest.mark.parametrize("name", HIDING)
def test_inputs_may_hide_what_the_file_needs(name: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"torch": torch}
    exec(f"def forward(self, y, {name}, *, z=None): return torch.relu(self.a({name})) % y.shape[0] + y", namespace)
    model = type("Model", (nn.Module,), {"forward": namespace["forward"]})()
    model.a = nn.Linear(4, 4)
    inputs = {"y": torch.randn(3, 4), name: torch.randn(3, 4)}
    _, module, _ = written(capture(model.eval(), inputs), inputs, tmp_path)
    more = {key: torch.cat([value, value]) for key, value in inputs.items()}
    torch.testing.assert_close(module.load()(**more), model(**more))
    torch.testing.assert_close(module.load()(*more.values()), model(*more.values()))
