"""A pruned detector in its YOLO object: predicted with, validated, trained for an epoch, exported, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune import Budget, netadapt
from fxprune.errors import InputError
from fxprune.integrations.ultralytics import put_back, trainer

SIZE = 64
IMAGE = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)


def data_set(root: Path, classes: int) -> str:
    """Four noisy images with two boxes each, for training and for validation."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / part / f"{number}.png")
            (root / "labels" / part / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.3 0.3 0.2 0.2\n")
    names = "".join(f"  {number}: kind{number}\n" for number in range(classes))
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return str(root / "data.yaml")


def pruned(name: str, ratio: float) -> tuple[Any, int]:
    """A YOLO object with its network pruned, and how many parameters that has."""
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    yolo = (ultralytics.RTDETR if name.startswith("rtdetr") else ultralytics.YOLO)(name)
    dense = yolo.model
    # Only training uses RT-DETR's embeddings of noisy boxes: what they are joined with has to keep its size.
    config = {"exclude": ["*.enc_output.0"]} if name.startswith("rtdetr") else None
    budget, inputs = Budget("macs", ratio=ratio), torch.randn(1, 3, SIZE, SIZE)
    result = netadapt(dense, budget, example_inputs=inputs, config=config, progress=False)
    assert result.met and type(result.model) is type(dense)
    assert put_back(yolo, result).model is result.model
    return yolo, sum(parameter.numel() for parameter in result.model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "ratio"),
    [("yolov8n.yaml", 0.6), ("yolo26n.yaml", 0.4), ("rtdetr-resnet50.yaml", 0.6)],
)
def test_used_as_before(name: str, ratio: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # exports go there
    yolo, size = pruned(name, ratio)
    strides, classes = yolo.model.stride.tolist(), yolo.model.model[-1].nc
    data = data_set(tmp_path / "set", classes)
    how: dict[str, Any] = {"imgsz": SIZE, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    assert len(yolo.predict(IMAGE, imgsz=SIZE, verbose=False)) == 1
    yolo.val(data=data, project=str(tmp_path), **how)
    assert Path(yolo.export(format="onnx", imgsz=SIZE, simplify=False)).is_file()
    before = {key: value.clone() for key, value in yolo.model.state_dict().items()}
    yolo.train(trainer=trainer(yolo), data=data, epochs=1, project=str(tmp_path), **how)
    after = yolo.model.state_dict()
    assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
    assert any(not torch.equal(after[key].float(), value.float()) for key, value in before.items())
    assert yolo.names[1] == "kind1" and yolo.model.stride.tolist() == strides
    loaded = type(yolo)(str(yolo.trainer.best))
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == size
    with pytest.raises(InputError, match=f"the data have 3 classes and the network {classes}"):
        yolo.train(trainer=trainer(yolo), data=data_set(tmp_path / "other", 3), epochs=1, project=str(tmp_path), **how)


def test_what_is_no_such_object() -> None:
    for function in (trainer, lambda other: put_back(other, nn.Linear(2, 2))):
        with pytest.raises(InputError, match="got a Linear; expected a YOLO"):
            function(nn.Linear(2, 2))
