"""What models of timm offer beside `forward` works on the pruned ones, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Budget, netadapt

pytestmark = pytest.mark.slow  # timm is imported
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NAMES = ["resnet10t", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]


def pruned(name: str, **options: Any) -> tuple[Any, Any]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    if not options:
        options = {"num_classes": 4, **({"img_size": 64} if "vit" in name else {})}
    dense = timm.create_model(name, **options)
    budget = Budget("params", ratio=0.7)
    result = netadapt(dense.eval(), budget, example_inputs=IMAGES, config={"strategy": "uniform"}, progress=False)
    assert result.met and type(result.model) is type(dense)
    return dense, result.model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_a_classifier(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    dense, model = pruned(name)
    assert model.pretrained_cfg == dense.pretrained_cfg and model.default_cfg == dense.default_cfg
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        torch.testing.assert_close(model.forward_head(features), model(IMAGES))
        assert model.forward_head(features, pre_logits=True).shape[0] == 2

    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(dense, layer_decay=0.5) for p in g["params"]}
    named = dict(dense.named_parameters())
    assert all(scales[id(p)] == theirs[id(named[n])] for n, p in model.named_parameters())

    expected = gradients(model)
    model.set_grad_checkpointing(True)
    for name_, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name_])
    model.set_grad_checkpointing(False)

    model.reset_classifier(7)
    assert model.eval()(IMAGES).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(model(IMAGES), pooled)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(IMAGES).square().sum().backward()
    model.load_state_dict(state)  # running statistics moved
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "test_efficientnet"])
def test_features_only(name: str) -> None:
    dense, model = pruned(name, features_only=True)
    assert model.feature_info.channels() == dense.feature_info.channels()
    with torch.no_grad():
        maps, theirs = model(IMAGES), dense(IMAGES)
    assert [m.shape for m in maps] == [m.shape for m in theirs]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
