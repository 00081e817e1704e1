"""Prune, then quantise: one row a stage, an int8 file that onnxruntime runs, errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune import Accuracy, Budget, ExportError, NetAdaptResult, check_files, export_int8, netadapt

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXAMPLE = torch.randn(2, 3, 10, 10)


@pytest.fixture(scope="module")
def result() -> NetAdaptResult:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(40, 6),
    ).eval()  # fmt: skip
    return netadapt(network, Budget("macs", ratio=0.6), example_inputs=EXAMPLE, progress=False)


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, 10, 10, generator=generator) for _ in range(count)]


def test_each_stage_has_a_row(result: NetAdaptResult, tmp_path: Path) -> None:
    inputs = torch.cat(batches())
    labels = result.dense(inputs).argmax(1)
    stages = export_int8(result, tmp_path / "net.onnx", calibration=batches(), evaluate=Accuracy([(inputs, labels)]))
    dense, pruned, small = stages.stages
    assert [stage.name for stage in stages.stages] == ["dense", "pruned", "pruned, int8"]
    assert dense.score == 100 and dense.error == 0 < pruned.error
    assert abs(small.error - pruned.error) < 0.1 and all(stage.latency.ms > 0 for stage in stages.stages)
    assert small.size_bytes < pruned.size_bytes < dense.size_bytes
    text = str(stages)
    assert text.splitlines()[0].split() == ["stage", "score", "error", "ms", "MB"] and "net.onnx" in text
    assert all(f"{stage.latency.ms:.3f}" in text for stage in stages.stages)


def test_the_file_holds_the_pruned_network_in_integers(result: NetAdaptResult, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    export_int8(result, path, calibration=batches())
    assert check_files(path)
    weights = [t for t in onnx.load(path).graph.initializer if len(t.dims) == 4]
    shapes = {tuple(p.shape) for p in result.module.parameters() if p.dim() == 4}
    assert {tuple(t.dims) for t in weights} == shapes and {t.data_type for t in weights} == {onnx.TensorProto.INT8}
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {session.get_inputs()[0].name: EXAMPLE.numpy()})
    wanted = result.module(EXAMPLE).detach().numpy()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    export_int8(result, path, calibration=batches())  # in the place of its own file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "net.pt2"}, "written as .onnx"),
        ({"calibration": []}, "holds no batch"),
        ({"calibration": 7}, "pass a list of batches"),
        ({"calibration": [torch.randn(2, 4, 10, 10)]}, "onnxruntime cannot|cannot quantise"),
    ],
)
def test_what_is_wrong_is_named(result: NetAdaptResult, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    from fxprune.latency import BackendError

    given = {"path": "net.onnx", "calibration": batches(), **changes}
    with pytest.raises((ExportError, BackendError), match=said):
        export_int8(result, tmp_path / given.pop("path"), **given)
    assert not list(tmp_path.iterdir())
