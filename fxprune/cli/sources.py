"""What a user writes on the command line, as a model and its example inputs.

torchvision:resnet18                            a model of torchvision, with random weights
torchvision:retinanet_resnet50_fpn.backbone     a part of it
package.module:name                             a model, or a function or class that returns one without arguments
1,3,224,224    2,16:int64                       the shape of one input, and its dtype where it is not float32
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.cli.refused_imports import may_hold_modules
from fxprune.errors import SourceError

log = logging.getLogger(__name__)


def load_model(spec: str) -> nn.Module:
    """The model that `torchvision:NAME` or `package.module:name` stands for, or the submodule named after a dot.

    Raises SourceError with what is wrong in `spec`; a model that fails while it is built keeps its own error.
    """
    place, _, rest = spec.partition(":")
    name, _, part = rest.partition(".")
    if not place or not name:
        raise SourceError(f"{spec!r} is no model: write torchvision:NAME or package.module:function")
    model = _torchvision_model(name) if place == "torchvision" else _own_model(place, name)
    try:
        return model.get_submodule(part)
    except AttributeError as error:
        raise SourceError(f"{place}:{name} has no part {part!r}: {error}") from None


def default_shape(spec: str) -> str:
    """The input that is assumed where none is given: one image of 224 x 224, or a clip of 16 for a video model."""
    place, _, rest = spec.partition(":")
    if place == "torchvision":
        from fxprune.torchvision_support import ensure_torchvision

        ensure_torchvision()
        from torchvision import models

        if rest in models.list_models(module=models.video):
            return "1,3,16,224,224"
    return "1,3,224,224"


def _torchvision_model(name: str) -> nn.Module:
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    from torchvision import models

    names = models.list_models()
    if name not in names:
        raise SourceError(f"torchvision has no model {name!r}{_nearest(name, names)}")
    options: dict[str, None] = {"weights": None}
    if name in models.list_models(module=models.detection) + models.list_models(module=models.segmentation):
        options["weights_backbone"] = None  # else the backbone's weights are downloaded
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return models.get_model(name, **options)


def _own_model(place: str, name: str) -> nn.Module:
    found = load_object(place, name)
    model = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(model, nn.Module):
        raise SourceError(f"{place}:{name} gives {type(model).__name__}, expected a torch.nn.Module")
    return model


def load_object(place: str, name: str) -> Any:
    """What `name` is in the module `place`, which may lie where the command is called. Raises SourceError.

    The module may import torchvision, now or when it is used: that is made possible first.
    """
    _make_torchvision_importable()
    # An installed command does not look for modules where it is called; `python -m` does.
    if os.getcwd() not in sys.path and may_hold_modules(os.getcwd()):
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module exists and fails on an import of its own: its traceback says where
        raise SourceError(f"no module {error.name!r} here or installed (looking for {place}:{name})") from error
    if not hasattr(module, name):
        raise SourceError(f"{place} has no {name!r}{_nearest(name, vars(module))}")
    return getattr(module, name)


def _make_torchvision_importable() -> None:
    """Where it is installed. An installed one that cannot be imported matters only to code that imports it."""
    from fxprune.torchvision_support import TorchvisionError, ensure_torchvision

    try:
        ensure_torchvision()
    except ModuleNotFoundError as error:
        log.debug("%s", error)
    except TorchvisionError as error:
        log.warning("%s", error)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def example_inputs(shapes: Sequence[str]) -> tuple[Tensor, ...]:
    """One tensor of zeros for each `shape[:dtype]`: only shapes and dtypes matter to an analysis."""
    return tuple(_example(text) for text in shapes)


def _example(text: str) -> Tensor:
    sizes, _, dtype_name = text.partition(":")
    dtype = getattr(torch, dtype_name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise SourceError(f"input {text!r}: torch has no dtype {dtype_name!r}")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise SourceError(f"input {text!r}: expected sizes such as 1,3,224,224 or 2,16:int64") from None
    if min(shape) < 1:
        raise SourceError(f"input {text!r}: every size must be at least 1")
    return torch.zeros(shape, dtype=dtype)
