"""Whole networks: the torchvision ones that every pruner is asked about, and a trained CIFAR network on real images."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from image_files import first_pictures
from oracle import Finding, difference, examine, judge, random_plan, run, zeroed
from safetensors.torch import load_file
from torch import Tensor, nn

from passes import PruneChannels, capture, couple

# Name: side of the images, number of groups.
NETWORKS = {
    "resnet18": (32, 12),
    "resnet50": (32, 37),
    "vgg11_bn": (32, 10),
    "alexnet": (64, 7),
    "squeezenet1_0": (32, 25),
    "densenet121": (32, 120),
    "googlenet": (32, 57),
    "inception_v3": (75, 94),
    "mobilenet_v2": (32, 25),
    "mobilenet_v3_small": (32, 27),
    "mnasnet0_5": (32, 25),
    "shufflenet_v2_x1_0": (32, 31),
    "efficientnet_b0": (32, 40),
    "regnet_y_400mf": (32, 69),
    "resnext50_32x4d": (32, 53),
}

# Two thirds of the time, and what they are made of the others have as well.
SLOW = frozenset({"resnet50", "vgg11_bn", "inception_v3", "mobilenet_v2", "efficientnet_b0", "resnext50_32x4d"})


def build(name: str) -> nn.Module:
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **settings)
    if name in ("vgg11_bn", "alexnet"):  # 4,096 features twice are most of the weights and nothing of the structure
        first, second, last = (n for n, m in enumerate(model.classifier) if isinstance(m, nn.Linear))
        model.classifier[first] = nn.Linear(model.classifier[first].in_features, 64)
        model.classifier[second], model.classifier[last] = nn.Linear(64, 48), nn.Linear(48, 10)
    return model


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_torchvision_networks_are_pruned_exactly(name: str) -> None:
    side, groups = NETWORKS[name]
    finding = examine(build(name), torch.randn(2, 3, side, side), (1 / 2,), apart=False)
    assert len(finding.coupling.groups) == groups
    assert finding.batches == {2, 4}
    coverage = finding.coupling.coverage()
    assert coverage.macs > 0.99 and coverage.params > 0.99, coverage


def cifar_resnet20(data_dir: Path) -> nn.Module:
    """ResNet-20 with option-A shortcuts and its trained weights."""
    spec = importlib.util.spec_from_file_location("resnet_cifar", data_dir / "resnet_cifar.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.resnet(20)
    model.load_state_dict(load_file(data_dir / "resnet20_cifar10_jpeg.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def pictures(data_dir: Path) -> tuple[Tensor, Tensor]:
    """A hundred and twenty real images, normalised, and their labels."""
    images, labels = first_pictures(data_dir)
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (scaled - mean[:, None, None]) / deviation[:, None, None], torch.from_numpy(labels)


def test_a_trained_network_on_real_images(data_dir: Path, pictures: tuple[Tensor, Tensor]) -> None:
    """The weights are as they were trained: pruned and masked answers agree, in float64 and in classes."""
    images, labels = pictures[0][:24].double(), pictures[1][:24]
    gm = capture(cifar_resnet20(data_dir).double(), images[:2])
    coupling = couple(gm, images[:2])
    assert len(coupling.groups) == 14, "9 inner convolutions, the first width, and two paddings at each of two joints"
    assert coupling.coverage().params > 0.99
    accuracy = float((run(gm, images).argmax(1) == labels).double().mean())
    assert accuracy > 0.7, "the weights are not the trained ones"
    finding = Finding(gm, coupling)
    for seed, share in enumerate((0.9, 0.5)):
        plan = random_plan(coupling, share, seed)
        pruned = judge(finding, plan, images[:2], seed)
        dense = zeroed(gm, coupling, plan)
        for batch in (images[:7], images):
            assert difference(run(dense, batch), run(pruned, batch)) < 1e-9
        assert torch.equal(run(dense, images).argmax(1), run(pruned, images).argmax(1))


def test_a_trained_network_in_single_precision(data_dir: Path, pictures: tuple[Tensor, Tensor]) -> None:
    """As users run it: the same classes in float32."""
    images = pictures[0][:16]
    gm = capture(cifar_resnet20(data_dir), images[:1])
    coupling = couple(gm, images[:1])
    plan = random_plan(coupling, 0.8, 0)
    pruned = PruneChannels(plan)(gm).graph_module
    assert difference(run(zeroed(gm, coupling, plan), images), run(pruned, images)) < 1e-4
