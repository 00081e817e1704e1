"""A checkpoint folder in the layout of Hugging Face: which tensors it holds; each is read when it is asked for.

Weights are read from safetensors alone: `model.safetensors`, or shards with `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from fxprune.errors import ExportError
from passes.arguments import file_name
from passes.graph.module_copies import owned_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_LISTED = 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: its file, and its type as safetensors spells it."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers or truth values."""
        return self.dtype == "BOOL" or self.dtype[0] in "IU"

    def load(self) -> torch.Tensor:
        """The tensor. The file is mapped into memory, and stays so only while the tensor is there."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            found: torch.Tensor = opened.get_tensor(self.name)
        return found

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """A part of it, along its first dimension; a tensor without dimensions has one row."""
        from safetensors import safe_open

        if not self.shape:
            return self.load().reshape(1)
        with safe_open(self.file, framework="pt") as opened:
            found: torch.Tensor = opened.get_slice(self.name)[start : min(stop, self.shape[0])]
        return found


class Index(TypedDict, total=False):
    """What the index of shards says: in which file each tensor is."""

    weight_map: dict[str, str]
    metadata: dict[str, object] | None


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by name, the files that hold them in order, with their metadata, and the index."""

    folder: Path
    tensors: Mapping[str, Stored]
    files: Mapping[Path, Mapping[str, str]]
    index: Index | None

    def without(self, names: Collection[str]) -> Checkpoint:
        """The checkpoint without some tensors, and without files that hold nothing else."""
        tensors = {name: stored for name, stored in self.tensors.items() if name not in names}
        held = {stored.file for stored in tensors.values()}
        index = self.index
        if index is not None:
            index = {**index, "weight_map": {n: f for n, f in index["weight_map"].items() if n in tensors}}
        files = {file: about for file, about in self.files.items() if file in held}
        return Checkpoint(self.folder, tensors, files, index)


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """What a checkpoint folder holds, without its values. Raises ExportError that says what is missing or damaged."""
    place = file_name(folder, "checkpoint", f"the name of a folder that holds {SINGLE} or {INDEX}", ExportError)
    if not place.is_dir():
        raise ExportError(f"{place}: there is no such folder; name the one that holds {SINGLE} or {INDEX}")
    index = _index_of(place)
    files = sorted({place / name for name in index["weight_map"].values()}) if index else _single(place)
    tensors: dict[str, Stored] = {}
    metadata: dict[Path, Mapping[str, str]] = {}
    for file in files:
        held, metadata[file] = stored_in(file)
        tensors.update(held)
    if index:
        wrong = [n for n, file in index["weight_map"].items() if n not in tensors or tensors[n].file.name != file]
        wrong += [name for name in tensors if name not in index["weight_map"]]
        if wrong:
            raise ExportError(f"{place / INDEX}: {listed(wrong)} is not where it says; the folder is damaged")
    return Checkpoint(place, tensors, metadata, index)


def stored_in(file: Path) -> tuple[dict[str, Stored], Mapping[str, str]]:
    """The tensors of a file, without their values, and its metadata. Raises ExportError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, no mapping
            held = {n: Stored(file, n, part.get_dtype(), tuple(part.get_shape())) for n, part in parts.items()}
            return held, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file}: no safetensors file, or a damaged one: {error}; download it again") from error


def check_tensors(checkpoint: Checkpoint, network: nn.Module, needed: Collection[str]) -> None:
    """ExportError unless a checkpoint holds tensors of the network alone, and those that are needed, of which each may
    have any of its names."""
    own, stored = dict(owned_tensors(network)), checkpoint.tensors
    held = {id(tensor) for name, tensor in own.items() if name in stored}  # of tied ones a single name is there
    faults = [f"{name}: in the checkpoint, not in the model" for name in stored if name not in own]
    faults += [
        f"{name}: {there.shape} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name, there in stored.items()
        if name in own and tuple(own[name].shape) != there.shape
    ]
    faults += kind_faults(stored, own)
    faults += [
        f"{name}: in the model, not in the checkpoint"
        for name in needed
        if name not in own or id(own[name]) not in held
    ]
    if faults:
        raise ExportError(
            f"{checkpoint.folder}: this is not a checkpoint of {type(network).__name__}:\n  " + listed(faults, "\n  ")
        )


def kind_faults(stored: Mapping[str, Stored], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Whole numbers where the network has real ones, or the reverse: codes of a quantised network are no weights."""
    return [
        f"{name}: {there.dtype} in the checkpoint, {str(own[name].dtype).removeprefix('torch.')} in the model"
        for name, there in stored.items()
        if name in own and there.is_whole == (own[name].is_floating_point() or own[name].is_complex())
    ]


def _index_of(place: Path) -> Index | None:
    path = place / INDEX
    if not path.is_file():
        return None
    try:
        index: Index = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(file, str) and Path(file).name == file for file in index["weight_map"].values()):
            raise ValueError("it names files outside of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: this is no index of shards ({error}); download it again") from None
    return index


def _single(place: Path) -> list[Path]:
    found = sorted(place.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(file.name for file in found[:5])
        raise ExportError(f"{place}: {names} without {INDEX}, so nothing says which of them belong together")
    pickled = [*place.glob("*.bin"), *place.glob("*.pt"), *place.glob("*.pth")]
    if pickled:
        raise ExportError(
            f"{pickled[0]}: such a file is a pickle, which runs code when it is read and is not read here. "
            "Load the model where you trust it, and write it with model.save_pretrained(folder), as safetensors."
        )
    raise ExportError(f"{place}: there is no {SINGLE} and no {INDEX}; name the folder of a checkpoint")


def listed(items: list[str], between: str = ", ") -> str:
    """The first of some items, and how many more there are."""
    more = [f"and {len(items) - _MOST_LISTED} more"] if len(items) > _MOST_LISTED else []
    return between.join([*items[:_MOST_LISTED], *more])


class Values(Mapping[str, torch.Tensor]):
    """The tensors of a network by name; where it has a checkpoint, what is asked for is read from there.

    Raises KeyError for one that has no values anywhere.
    """

    def __init__(self, network: nn.Module) -> None:
        self._own = dict(owned_tensors(network))
        self._stored = _checkpoints[network].tensors if network in _checkpoints else {}
        first: dict[int, str] = {}
        for name, tensor in self._own.items():  # a checkpoint holds tied tensors by any of their names
            if name in self._stored:
                first.setdefault(id(tensor), name)
        self._first = first

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._own[name]
        if id(tensor) in self._first:
            return self._stored[self._first[id(tensor)]].load()
        if tensor.is_meta:
            raise KeyError(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        tensor = self._own.get(str(name))
        return tensor is not None and (id(tensor) in self._first or not tensor.is_meta)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._own if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_checkpoints: weakref.WeakKeyDictionary[nn.Module, Checkpoint] = weakref.WeakKeyDictionary()


def take_values_from(network: nn.Module, folder: str | os.PathLike[str]) -> None:
    """From now on `Values` of a network are those of a checkpoint folder, as far as it holds them.

    Raises ExportError where the folder is none, holds tensors of other shapes, or lacks one that the network has not.
    """
    checkpoint, own = read_checkpoint(folder), dict(owned_tensors(network))
    check_tensors(checkpoint, network, [name for name in network.state_dict() if name in own and own[name].is_meta])
    _checkpoints[network] = checkpoint
