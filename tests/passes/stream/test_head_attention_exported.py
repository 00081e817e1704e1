"""Attention with fewer heads, exported as ONNX by torch's trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from module_law import proven
from torch import Tensor, nn


class Attending(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_first", [False, True])
def test_traced_onnx_gives_the_same(batch_first: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    cut, _, _ = proven(nn.Sequential(nn.Linear(5, 24), Attending(batch_first)).double(), torch.randn(3, 7, 5).double())
    x, path = torch.randn(3, 7, 5), tmp_path / "cut.onnx"
    cut = cut.float().eval()
    torch.onnx.export(cut, (x,), path, dynamo=False, opset_version=18, input_names=["x"])
    found = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, cut(x).detach().numpy(), atol=1e-5)
