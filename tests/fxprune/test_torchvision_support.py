"""The stand-ins for torchvision's operators: nms against the definition, and the models that need them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fxprune.torchvision_support import ensure_torchvision, nms


def naive_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """The definition, box by box: keep what no kept box of a higher score overlaps."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    kept: list[int] = []
    for candidate in order:
        if all(iou(boxes[candidate], boxes[other]) <= threshold for other in kept):
            kept.append(candidate)
    return kept


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    ax1, ay1, ax2, ay2 = a.tolist()
    bx1, by1, bx2, by2 = b.tolist()
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared / union if union else 0.0


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 10
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6], 1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("count", [1, 2, 57])
def test_nms_is_the_definition(count: int, threshold: float) -> None:
    boxes = random_boxes(count, seed=count)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)


def test_the_oracle_tells_a_wrong_threshold_apart() -> None:
    boxes, scores = random_boxes(57, seed=57), torch.rand(57)
    assert nms(boxes, scores, 0.3).tolist() != naive_nms(boxes, scores, 0.6)


def test_equal_scores_keep_the_first() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 2], [5.0, 5, 6, 6], [0.1, 0, 2, 2]])
    scores = torch.full((4,), 0.5)
    assert nms(boxes, scores, 0.5).tolist() == naive_nms(boxes, scores, 0.5) == [0, 2]


def test_overlap_equal_to_the_threshold_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1]])  # intersection over union is exactly 1/2
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.49).tolist() == [0]


def test_no_boxes_and_boxes_without_area() -> None:
    empty = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert empty.dtype == torch.int64 and empty.shape == (0,)
    assert nms(torch.zeros(2, 4), torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]


def test_integer_and_half_boxes_are_compared_in_float() -> None:
    boxes = torch.tensor([[0, 0, 200, 200], [0, 0, 199, 200], [210, 210, 255, 255]])
    scores = torch.tensor([9, 8, 7])
    assert nms(boxes.to(torch.uint8), scores.to(torch.uint8), 0.5).tolist() == [0, 2]
    assert nms(boxes.half(), scores.half(), 0.5).tolist() == [0, 2]


@pytest.mark.parametrize(("boxes", "scores"), [((3, 5), (3,)), ((4,), (4,)), ((3, 4), (2,)), ((3, 4), (3, 1))])
def test_wrong_shapes_are_named(boxes: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nms: .*got"):
        nms(torch.zeros(boxes), torch.zeros(scores), 0.5)


def test_the_operator_that_torchvision_calls_agrees() -> None:
    import torchvision

    boxes, scores = random_boxes(40, seed=3).float(), torch.rand(40)
    assert torchvision.ops.nms(boxes, scores, 0.4).tolist() == naive_nms(boxes, scores, 0.4)
    assert torchvision.ops.batched_nms(boxes, scores, torch.arange(40) % 2, 0.4).numel() > 0


def test_again_changes_nothing() -> None:
    import torchvision

    ensure_torchvision()
    ensure_torchvision()
    assert sys.modules["torchvision"] is torchvision


def test_it_helps_after_a_plain_import_has_failed() -> None:
    script = """
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error), error
from fxprune.torchvision_support import ensure_torchvision
ensure_torchvision()
import torch, torchvision
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_faster_rcnn_detects_and_trains() -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96)
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert set(found) == {"boxes", "labels", "scores"} and found["boxes"].shape == (len(found["scores"]), 4)
    target = {"boxes": torch.tensor([[4.0, 6, 40, 50]]), "labels": torch.tensor([3])}
    losses = model.train()([image], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.body["0"][0].weight.grad is not None


class EmptyOnMeta(TorchFunctionMode):
    """Parameters take no memory; the few tensors that a constructor computes with stay real (RegNet's widths)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **((kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    ("family", "count"),
    [pytest.param("", 80, marks=pytest.mark.slow), ("segmentation", 6), ("video", 9), ("detection", 12)],
)
def test_every_model_builds(family: str, count: int) -> None:
    from torchvision import models

    module = getattr(models, family) if family else models
    names = models.list_models(module=module)
    assert len(names) >= count
    without_weights = {"weights": None} | (
        {"weights_backbone": None} if family in ("segmentation", "detection") else {}
    )
    for name in names:
        # Detection models compute with the values of a layer while they are built; then all of it has to be on meta.
        with torch.device("meta") if family == "detection" else EmptyOnMeta():
            assert sum(p.numel() for p in models.get_model(name, **without_weights).parameters()) > 0, name


# A torchvision whose library ends the process where an operator of its own is defined already, as the real one does.
NATIVE = """
import os, torch
if hasattr(torch.ops.torchvision, "nms"):
    os.abort()
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
DEFINED_BEFORE = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def _ensured(folder: Path, package: str, before: str = "", after: str = "") -> str:
    """What comes of `ensure_torchvision` in a new process, beside a torchvision of this text in `folder`."""
    (folder / "torchvision").mkdir(exist_ok=True)
    (folder / "torchvision" / "__init__.py").write_text(package)
    script = f"""{before}
from fxprune import torchvision_support as support
try:
    support.ensure_torchvision()
except ImportError as error:
    print(type(error).__name__, error)
else:
    print("imported", "with stand-ins" if support._library is not None else "as it is")
{after}
"""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


def test_its_own_library_is_tried_before_anything_is_defined(tmp_path: Path) -> None:
    assert _ensured(tmp_path, NATIVE) == "imported as it is\n"


def test_an_operator_that_others_defined_is_named_and_the_process_goes_on(tmp_path: Path) -> None:
    said = _ensured(tmp_path, NATIVE, before=DEFINED_BEFORE)
    assert said.startswith("TorchvisionError") and "torchvision::nms is defined already" in said


def test_operators_that_others_defined_are_completed_where_the_library_does_not_load(tmp_path: Path) -> None:
    package = """
import torch
torch.library.register_fake("torchvision::nms")(lambda *_: None)
torch.library.register_fake("torchvision::qnms")(lambda *_: None)
from torchvision import ops
"""
    (tmp_path / "torchvision" / "ops").mkdir(parents=True)
    (tmp_path / "torchvision" / "ops" / "__init__.py").write_text("from torchvision.ops import boxes, roi_align")
    for name in ("boxes", "roi_align"):
        (tmp_path / "torchvision" / "ops" / f"{name}.py").write_text("")
    (tmp_path / "torchvision" / "__init__.py").write_text(package)
    assert _ensured(tmp_path, package) == "imported with stand-ins\n"


@pytest.mark.parametrize(
    ("package", "said"),
    [
        pytest.param("import os; os.abort()", "it ends the process", marks=pytest.mark.slow),
        pytest.param("import torch; torch.no_such_function", "no_such_function", marks=pytest.mark.slow),
        ("raise RuntimeError('compiled for another CUDA\\nlong story')", "compiled for another CUDA. Install"),
    ],
    ids=["abort", "another torch", "another CUDA"],
)
def test_a_torchvision_that_cannot_be_imported_is_an_error_that_says_why(
    tmp_path: Path, package: str, said: str
) -> None:
    found = _ensured(tmp_path, package)
    assert found.startswith("TorchvisionError") and said in found and "long story" not in found


def test_without_torchvision_models_of_ones_own_load(tmp_path: Path) -> None:
    hidden = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else found(name, *rest)
"""
    after = "from fxprune.cli.sources import load_object; print(load_object('json', 'dumps')([1]))"
    said = _ensured(tmp_path, "", before=hidden, after=after).splitlines()
    assert said[0].startswith("ModuleNotFoundError torchvision is not installed") and said[1] == "[1]"
