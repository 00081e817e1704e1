"""The inputs that a model is analysed with: as they are written, as the data has them, or as the model's source says.

1,3,224,224    2,16:int64    input_ids=1,16:int64      the shape of one input; its dtype where it is not float32; its
                                                       name where it is passed by keyword
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.cli.sources import raised
from fxprune.errors import SourceError
from fxprune.training.context import DLContext


@dataclass(frozen=True)
class Shapes:
    """Shapes as they may be written, and where they come from, in words."""

    texts: tuple[str, ...]
    origin: str

    def __str__(self) -> str:
        return f"{' and '.join(self.texts)} ({self.origin})"


def shapes_of(written: Sequence[str], spec: str, model: nn.Module | None = None, batches: object = None) -> Shapes:
    """The shapes for the model that `spec` names: as written, else of the first batch, else by the model's source.

    Raises SourceError where nothing says what the model takes: no shape is guessed for a model of one's own.
    """
    if written:
        return Shapes(tuple(written), "as given")
    first = first_batch(batches)
    if first is not None:
        return Shapes(first, "from the first batch of the data")
    place, _, name = spec.partition(":")
    if place == "torchvision":
        return Shapes((torchvision_shape(name),), "torchvision's usual size; --input changes it")
    settings = getattr(model, "default_cfg", None)
    if place == "timm" and settings:
        return Shapes((_text((1, *settings["input_size"])),), "of timm's configuration; --input changes it")
    if place == "hf" and (found := _of_transformers(model)):
        return Shapes(found, "of the model's configuration; --input changes it")
    raise SourceError(
        f"{spec}: nothing says what the model takes. Pass its shape, --input 1,3,32,32 (once for each input; "
        "1,16:int64 for token numbers), or write `input:` in the configuration."
    )


def torchvision_shape(name: str) -> str:
    """One image of 224 x 224; a clip of 16 for a video model."""
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    from torchvision import models

    return "1,3,16,224,224" if name in models.list_models(module=models.video) else "1,3,224,224"


def first_batch(batches: object) -> tuple[str, ...] | None:
    """The shapes of the inputs of the first batch, with a batch size of 1; None where there are no batches.

    Batches are an iterable of inputs or of (inputs, labels, ...); or a DLContext or a pair or mapping that holds one.
    """
    if isinstance(batches, DLContext):
        return first_batch(batches.train_loader if batches.train_loader is not None else batches.calibration)
    if isinstance(batches, Mapping):
        return first_batch(batches.get("train"))
    if isinstance(batches, tuple) and batches and not isinstance(batches[0], Tensor):
        return first_batch(batches[0])
    if batches is None or callable(batches) or not hasattr(batches, "__iter__"):
        return None
    try:
        batch = next(iter(batches), None)
    except Exception as error:
        raise raised("the first batch of the data", error) from error
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        return (_written(batch),)
    if isinstance(batch, Mapping) and all(isinstance(value, Tensor) for value in batch.values()):
        return tuple(f"{name}={_written(value)}" for name, value in batch.items() if name not in ("label", "labels"))
    return None


def example_inputs(shapes: Sequence[str]) -> Any:
    """One tensor of zeros for each shape: a tuple, or a dict where they have names. Only shapes and dtypes matter to
    an analysis."""
    named = [name for name, separator, _ in (text.partition("=") for text in shapes) if separator]
    if named and len(named) != len(shapes):
        raise SourceError(f"input {' '.join(shapes)!r}: give either all inputs a name or none")
    if named:
        return {name: _example(text) for name, _, text in (shape.partition("=") for shape in shapes)}
    return tuple(_example(text) for text in shapes)


def _example(text: str) -> Tensor:
    sizes, _, dtype_name = text.partition(":")
    dtype = getattr(torch, dtype_name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise SourceError(f"input {text!r}: torch has no dtype {dtype_name!r}")
    try:
        shape = [int(size) for size in sizes.replace("x", ",").split(",")]
    except ValueError:
        raise SourceError(f"input {text!r}: expected sizes such as 1,3,224,224 or 2,16:int64") from None
    if min(shape) < 1:
        raise SourceError(f"input {text!r}: every size must be at least 1")
    try:
        return torch.zeros(shape, dtype=dtype)
    except (RuntimeError, TypeError):  # of more bytes than there are, or than torch can count
        raise SourceError(f"input {text!r}: there is no memory for a tensor of this size") from None


def _written(batch: Tensor) -> str:
    return _text((1, *batch.shape[1:]), batch.dtype)


def _text(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> str:
    name = str(dtype).removeprefix("torch.")
    return ",".join(map(str, shape)) + ("" if name == "float32" else f":{name}")


def _of_transformers(model: nn.Module | None) -> tuple[str, ...] | None:
    config = getattr(model, "config", None)
    if (
        config is not None
        and getattr(model, "main_input_name", None) == "pixel_values"
        and getattr(config, "image_size", None)
    ):
        size = config.image_size if isinstance(config.image_size, int) else max(config.image_size)
        return (f"pixel_values=1,{getattr(config, 'num_channels', 3)},{size},{size}",)
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping) and all(isinstance(value, Tensor) for value in dummy.values()):
        return tuple(f"{name}={_text(value.shape, value.dtype)}" for name, value in dummy.items())
    return None
