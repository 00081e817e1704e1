"""Detectors: torchvision's whole or in parts, whose outer code is plain Python, and a YOLO-style one as a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detector_nets import Yolo
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import netadapt
from passes import PruneChannels, capture, cost, couple, verify

FAST = {"budget_reduce_rate_init": 0.4, "strategy": "uniform"}


def faster_rcnn() -> nn.Module:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    few = {f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")}
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96, **few
    )


def retinanet() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = _resnet_fpn_extractor(resnet18(), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    return RetinaNet(backbone, num_classes=4, min_size=64, max_size=96)


def ssdlite() -> nn.Module:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    model.transform.fixed_size = (96, 96)
    return model


def counted_flops(model: nn.Module, *inputs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops()


CASES: list[Any] = [
    (faster_rcnn, ["backbone", "rpn.head"], 0.85),
    (retinanet, ["backbone.body", "head.classification_head.conv"], 0.7),
    (ssdlite, "backbone", 0.6),
]


@pytest.mark.parametrize(("make", "scope", "share"), CASES, ids=["faster_rcnn", "retinanet", "ssdlite"])
@pytest.mark.slow
def test_torchvision_detectors(make: Callable[[], nn.Module], scope: Any, share: float) -> None:
    model = make().eval()
    images = [torch.rand(3, 70, 90), torch.rand(3, 80, 64)]
    result = netadapt(model, share, scope=scope, example_inputs=(images,), config=FAST, progress=False)
    assert result.start["flops"] == counted_flops(model, images)
    assert result.achieved["flops"] <= share * result.start["flops"]
    assert type(result.model) is type(model)
    if make is not faster_rcnn:  # there the number of proposals depends on the weights
        assert result.achieved["flops"] == counted_flops(result.model, images)
    with torch.no_grad():
        found = result.model(images)
    assert [set(one) for one in found] == [{"boxes", "scores", "labels"}] * 2
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])} for _ in images]
    losses = result.model.train()(images, targets)
    sum(losses.values()).backward()
    name = scope if isinstance(scope, str) else scope[0]
    part = result.model.get_submodule(name)
    assert any(parameter.grad is not None for parameter in part.parameters())


def yolo() -> Yolo:
    model = Yolo().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def test_yolo_as_a_whole() -> None:
    example = torch.randn(2, 3, 64, 96)
    model = yolo()
    gm = capture(model, example)
    coupling = couple(gm, example)
    generator = torch.Generator().manual_seed(0)

    def half(size: int) -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(size, generator=generator)[: max(1, size // 2)].tolist()))

    plan = coupling.plan({group.name: half(group.size) for group in coupling.groups})
    pruned = PruneChannels(plan)(gm).graph_module
    certificate = verify(gm, pruned, plan, example)
    assert certificate.batch_sizes == (2, 3, 1)
    assert pruned(example).shape == model(example).shape
    assert cost(coupling).flops(plan.widths) == counted_flops(pruned, example)
    # All but the outputs, the DFL and the input can shrink.
    share = cost(coupling).macs({group.name: 1 for group in coupling.groups}) / cost(coupling).macs()
    assert share < 0.1
    frozen = {item.tensor for item in coupling.frozen if hasattr(item, "tensor")}
    assert not frozen or any("dfl" in str(name) for name in frozen)
    trained = copy.deepcopy(pruned).train()
    output: Tensor = trained(example)
    output.sum().backward()
