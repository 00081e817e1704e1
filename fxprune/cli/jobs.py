"""What the command line is asked to search, as a call of `netadapt`: model, data and inputs by the names they are
given."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.cli.inputs import example_inputs, first_batch, shapes_of
from fxprune.cli.sources import load_model, load_object, raised
from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import ExportError, JournalError, SourceError
from fxprune.io.checkpoint import kind_faults, listed, stored_in
from fxprune.io.printed_text import echo
from fxprune.io.storage import Damaged, Lock, read_json, write_json
from fxprune.io.typed_records import made
from fxprune.journal.own_files import COMMAND
from fxprune.tinynn.flow import search_functions
from fxprune.training.candidate import Accuracy, Evaluate, FineTune, Train
from fxprune.training.context import DLContext, get_device
from fxprune.training.optimizer_recipe import names_of
from passes.arguments import user_path
from passes.graph.module_copies import owned_tensors

log = logging.getLogger(__name__)

DATA_SETS = ("cifar10", "cifar100", "imagenet")


@dataclass(frozen=True)
class Job:
    """The names that a search was started with. `weights`: a safetensors file for the model; `data` None: no data."""

    model: str
    data: str | None = None
    inputs: tuple[str, ...] = ()
    weights: str | None = None
    seed: int = 0

    def save(self, lock: Lock) -> None:
        """Leave the names in the folder of the search, for `resume` and `restore`; another search's are not touched."""
        workdir, known = lock.folder, None
        path = workdir / COMMAND
        try:
            known = _read(path) if (workdir / "run.json").is_file() else None
        except Damaged as damage:  # the names are at hand, and the search's own record still refuses another model
            log.warning("%s; it is written again", damage)
        if known is not None and known != self:
            differences = [
                f"{field.name}: {getattr(known, field.name)!r} there, {getattr(self, field.name)!r} here"
                for field in fields(self)
                if getattr(known, field.name) != getattr(self, field.name)
            ]
            raise JournalError(
                f"{workdir}: the search that is kept here is another one: {'; '.join(differences)}. "
                "Choose another workdir."
            )
        if known is None:
            write_json(path, json.loads(json.dumps(asdict(self))))

    def build(self, device: torch.device | str | None = None) -> nn.Module:
        """The model, with its weights, on a device; one on the meta device, which has none, stays there."""
        torch.manual_seed(self.seed)  # weights that are drawn are the same when the search is resumed
        model = load_model(self.model)
        if self.weights is not None:
            load_weights(model, user_path(self.weights))
        elif self.model.startswith(("torchvision:", "timm:")):
            log.warning("%s has random weights; --weights FILE.safetensors loads trained ones", self.model)
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            return model  # without values nothing can be moved; the search says what to do
        return model.to(device or get_device())

    def example(self) -> object:
        """Example inputs of the shapes that the job names."""
        return example_inputs(self.inputs)

    def with_inputs(self, model: nn.Module, found: object, calibration: object) -> Job:
        """The job with its inputs' shapes, taken from the data where none are written; they are printed."""
        shapes = shapes_of(self.inputs, self.model, model, found if first_batch(found) else calibration)
        echo(f"inputs: {shapes}", err=True)
        return replace(self, inputs=shapes.texts)

    def load_data(self) -> object:
        """What the data's name stands for; None without any."""
        return None if self.data is None else load_data(self.data, self._image_size())

    def functions(
        self, found: object, model: nn.Module, config: NetAdaptConfig
    ) -> tuple[Train | None, Evaluate | None]:
        """`train` and `evaluate` of a search, from the data; None and None without any."""
        return (None, None) if self.data is None else functions_of(found, self.data, model, config)

    def calibration(self, found: object, config: NetAdaptConfig) -> object:
        """The calibration batches that the configuration names; None where it names none."""
        spec = config.calibration or ("train" if config.bn_compensation and self.data is not None else None)
        if spec is None:
            return None
        if spec == "train":
            return training_batches(found, self.data)
        batches = load_data(spec, self._image_size())
        if batches is None:
            raise SourceError(f"calibration: {spec} gives None; expected batches of inputs: a list or a DataLoader")
        return batches[0] if spec.partition(":")[0] in DATA_SETS else batches

    def _image_size(self) -> int | None:
        """The size of images that the written inputs name; None: the data set's own."""
        written = example_inputs(self.inputs)
        tensors = written.values() if isinstance(written, dict) else written
        return next((tensor.shape[-1] for tensor in tensors if tensor.dim() == 4), None)


def job_in(workdir: str | Path) -> Job:
    """The names that the search in a folder was started with."""
    try:
        job = _read(Path(workdir) / COMMAND)
    except Damaged as damage:
        raise JournalError(
            f"{damage}; `fxprune netadapt CONFIG.yml` writes it again and goes on, and restore takes --model."
        ) from None
    if job is None:
        raise JournalError(
            f"{workdir}: there is no {COMMAND}, so no search was started here from the command line; name the model "
            "with --model."
        )
    return job


def _read(path: Path) -> Job | None:
    found = read_json(path)
    try:
        return None if found is None else made(Job, found)
    except ValueError as error:
        raise Damaged(f"{path}: the record has not the form that this version writes ({error})") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a safetensors file into the model; names that do not fit are an error that lists them."""
    from safetensors.torch import load_file

    if path.suffix != ".safetensors" or not path.is_file():
        raise SourceError(
            f"{path}: "
            + ("there is no such file" if path.suffix == ".safetensors" else "weights are read from .safetensors")
        )
    try:
        if faults := kind_faults(stored_in(path)[0], dict(owned_tensors(model))):
            raise ValueError(listed(faults))
        model.load_state_dict(load_file(path))
    except (RuntimeError, ValueError, ExportError) as error:
        raise SourceError(f"{path}: the weights are not those of this model: {error}") from error


def load_data(spec: str, size: int | None) -> Any:
    """What `cifar10:FOLDER`, `cifar100:FOLDER`, `imagenet:FOLDER` or `package.module:function` stands for.

    size: of the images of the first three; None: that of the data set.
    """
    place, _, name = spec.partition(":")
    if not place or not name:
        raise SourceError(
            f"{spec!r} is no data: write package.module:function, or one of {', '.join(DATA_SETS)} and :FOLDER"
        )
    if place in DATA_SETS:
        from fxprune import data

        chosen = {} if size is None else {"img_size": size}
        loaders = getattr(data, place).get_dataloader(name, workers=min(4, os.cpu_count() or 1), **chosen)
        return loaders.train, loaders.selection
    found = load_object(place, name)
    try:
        return found() if callable(found) else found
    except Exception as error:
        raise raised(f"{spec}()", error) from error


def training_batches(found: object, spec: str | None) -> object:
    """The training batches of what a data function returned."""
    if isinstance(found, DLContext):
        first = found.calibration if found.calibration is not None else found.train_loader
    elif isinstance(found, Mapping):
        first = found.get("train")
    else:
        first = found[0] if isinstance(found, tuple | list) and found else None
    if first is None or callable(first):
        raise SourceError(
            f"calibration: train takes the training batches of the data, and {spec or 'no data'} gives none; name "
            "batches of your own: calibration: package.module:function"
        )
    return first


def functions_of(
    found: object, spec: str, model: nn.Module, config: NetAdaptConfig
) -> tuple[Train | None, Evaluate | None]:
    """`train` and `evaluate` from what a data function returned.

    A DLContext with train_func and validate_func; or train and evaluate themselves; or two loaders (or lists) of
    batches of (inputs, labels), for training and for selection. A pair may be a mapping with the keys "train" and
    "evaluate".
    """
    if isinstance(found, DLContext):
        return search_functions(names_of(model), found, config.netadapt_lr)
    if isinstance(found, Mapping):
        found = tuple(found[key] for key in ("train", "evaluate") if key in found)
    if not isinstance(found, tuple | list) or len(found) < 2:
        raise SourceError(
            f"{spec} gives {type(found).__name__}; expected (train, evaluate), which are called as "
            "train(model, steps) and evaluate(model), or (training batches, selection batches), or a DLContext"
        )
    first, second = found[0], found[1]
    train = first if callable(first) else FineTune(first, lr=config.netadapt_lr)
    return train, second if callable(second) else Accuracy(second)
