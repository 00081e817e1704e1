"""The networks of torchvision as the benchmarks build them: small inputs, random weights that hide no mistake.

Weights as a constructor leaves them would prove little: biases are zero, norms are the identity, LayerScale is 1e-6,
so a permuted or forgotten slice changes nothing. Here every parameter is random, and batch norms hold the statistics
of random data, so that activations keep their size through any depth.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxprune.torchvision_support import ensure_torchvision

FAMILIES = ("classification", "segmentation", "video", "detection")


@dataclass(frozen=True)
class Network:
    """One network: how it is built, the shape of one example input, and how it is cut for the proof if it is huge.

    shallow: submodules (Sequentials) and how many of their first layers stay in the sibling that is proven.
    """

    name: str
    family: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    shallow: Mapping[str, int] = field(default_factory=dict)

    @property
    def input(self) -> str:
        """The input's size in words: ``64 px``, ``4 x 64 px``."""
        *frames, side = self.shape[2:-1]
        return " x ".join([*map(str, frames), f"{side} px"])


# The least that the architecture accepts, where that is more than 64 pixels or has to be said to the constructor.
_SHAPES = {
    "inception_v3": (1, 3, 75, 75),
    "maxvit_t": (1, 3, 224, 224),
    "vit_h_14": (1, 3, 56, 56),
    "mc3_18": (1, 3, 4, 64, 64),
    "r3d_18": (1, 3, 4, 64, 64),
    "r2plus1d_18": (1, 3, 4, 64, 64),
    "s3d": (1, 3, 13, 209, 209),
    "mvit_v1_b": (1, 3, 4, 64, 64),
    "mvit_v2_s": (1, 3, 4, 64, 64),
    "swin3d_t": (1, 3, 4, 64, 64),
    "swin3d_s": (1, 3, 4, 64, 64),
    "swin3d_b": (1, 3, 4, 64, 64),
    "ssd300_vgg16": (1, 3, 272, 272),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{name: {"image_size": 64} for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
    "vit_h_14": {"image_size": 56},
}
# More than 300 million parameters: analysed whole on the meta device, proven at full width with these layers.
_SHALLOW = {
    **{name: {"encoder.layers": 2} for name in ("vit_l_16", "vit_l_32", "vit_h_14")},
    "regnet_y_128gf": {f"trunk_output.block{n}": 1 for n in (1, 2, 3, 4)},
}


def networks() -> tuple[Network, ...]:
    """All of torchvision's classification, segmentation and video models, and the backbones of its detectors."""
    ensure_torchvision()
    from torchvision import models

    modules = dict(zip(FAMILIES, (models, models.segmentation, models.video, models.detection), strict=True))
    return tuple(
        Network(
            name, family, _SHAPES.get(name, (1, 3, 64, 64)), _OPTIONS.get(name, {}), _SHALLOW.get(name, {})
        )
        for family, module in modules.items()
        for name in models.list_models(module=module)
    )  # fmt: skip


def build(network: Network, *, meta: bool = False, seed: int = 0) -> nn.Module:
    """The network in evaluation mode: with random weights, cut where it is shallow; on meta whole, without weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        model = _detector(network) if network.family == "detection" else _model(network)
    if meta:
        return model.to("meta").eval()
    for path, layers in network.shallow.items():
        parent, _, child = path.rpartition(".")
        kept = list(model.get_submodule(path).named_children())[:layers]
        setattr(model.get_submodule(parent), child, nn.Sequential(OrderedDict(kept)))
    materialise(model)
    model.to(torch.get_default_dtype())  # Swin v2 computes its tables in float32 whatever the default is
    torch.manual_seed(seed)
    randomise(model)
    calibrate(model, torch.randn(2, *network.shape[1:]))
    return model.eval()


class _Weightless(TorchFunctionMode):
    """Parameters on meta; the few tensors that a constructor computes with (tables, schedules) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **((kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})))


def _model(network: Network) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {"weights": None, **network.options}
    if network.family == "segmentation":
        options["weights_backbone"] = None
    with _Weightless(), _small_clips(network):
        return models.get_model(network.name, **options)


def _small_clips(network: Network) -> Any:
    """MViT states the size of its clips in the functions that build it, and takes no other from the caller."""
    from torchvision.models.video import mvit

    original: Callable[..., nn.Module] = mvit._mvit
    frames, *sides = network.shape[2:] if len(network.shape) == 5 else (1, 1, 1)
    size = {"temporal_size": frames, "spatial_size": tuple(sides)}
    return patch.object(mvit, "_mvit", lambda *args, **kwargs: original(*args, **(kwargs | size)))


def _detector(network: Network) -> nn.Module:
    """The backbone with its feature pyramid. Built with weights: detectors compute with a layer's values."""
    from torchvision import models

    return models.get_model(network.name, weights=None, weights_backbone=None).backbone


def materialise(model: nn.Module) -> None:
    """Give every parameter that is on meta memory of its own; tied ones stay tied."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
                module._parameters[name] = known[id(parameter)]


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Random values for every parameter: those of weights keep the size of activations, scales lie around one."""
    for module in model.modules():
        weighing = isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and weighing:
                parameter.normal_(0, math.sqrt(2 * parameter.shape[0] / parameter.numel()))
            elif name == "weight" or "scale" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.5)


@torch.no_grad()
def calibrate(model: nn.Module, *inputs: Any) -> None:
    """Batch norms take their statistics from one run on `inputs`; a model without any is not run."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    model.eval()
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(*inputs)
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval().momentum = momentum
        # Few positions give some channels next to no variance, and dividing by it would drown all others.
        variance = norm.get_buffer("running_var")
        variance.add_(variance.mean()).clamp_(min=1e-6)
