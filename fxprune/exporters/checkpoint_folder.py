"""A checkpoint folder cut tensor by tensor, as a plan says: neither the model nor a shard is ever whole in memory.

What is written has the layout of what is read (`fxprune.io.checkpoint`): the same files, types and metadata. Beside it
stands `fxprune_plan.json`, the plan and the SHA-256 of each file of weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.errors import ExportError, InputError
from fxprune.integrations.huggingface import PLAN
from fxprune.io.checkpoint import INDEX, Checkpoint, Stored, check_tensors, read_checkpoint
from fxprune.io.empty_networks import empty_weights
from fxprune.io.storage import write_json
from fxprune.problem.stock_widths import stated_config
from passes import Coupling, Plan
from passes.apply.cut_module import module_coupling_for
from passes.arguments import file_name, is_a
from passes.documents.plan import is_plan
from passes.stream.call_arguments import example_of
from passes.transform.slicing import Slicing
from passes.trial.module_groups import remember_module

log = logging.getLogger(__name__)
CONFIG = "config.json"
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt"})


def prune_checkpoint(
    model: nn.Module, plan: Plan, folder: str | os.PathLike[str], out: str | os.PathLike[str]
) -> tuple[Path, ...]:
    """Cut a checkpoint folder as `plan` says, into the new folder `out`; the files of weights that were written.

    model: of the class of the checkpoint, with any weights or none (made under `fxprune.empty_weights()`): it says
    which positions of which tensor a unit is. At a time one tensor is in memory. `out` must not exist, or be empty.
    Tensors of residual blocks that the plan removes are left out, and so are files that hold nothing else. Other files
    of the folder (configuration, tokenizer) are copied. Where the numbers of `config.json` can state the
    new widths, they do, and the model's own `from_pretrained` loads `out`; why not is logged as a warning.
    `fxprune.from_pretrained(out)` loads either of a model of transformers; `fxprune.prune_checkpoint` needs none.

    Raises ExportError where the folder is no such checkpoint, or that of another model, and PlanError where the plan
    was made for another network.
    """
    is_a(model, nn.Module, "prune_checkpoint: model", "the network before pruning, with weights or without", InputError)
    is_plan(plan, "prune_checkpoint: plan", "a Plan: result.plan, or Plan.from_json(text)", InputError)
    checkpoint = read_checkpoint(folder)
    target = file_name(out, "prune_checkpoint: out", "the name of the folder to write", ExportError)
    _check_target(target, checkpoint.folder)
    coupling = module_coupling_for(model, plan)
    plan.check(coupling)
    check_tensors(checkpoint, model, list(model.state_dict()))
    config = _stated(model, coupling, plan, checkpoint.folder)
    gone = coupling.tensors_gone(plan.removed_blocks)
    checkpoint = checkpoint.without({name for name in checkpoint.tensors if coupling.aliases[name] in gone})
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        written = _write(staging, checkpoint, Slicing(coupling, coupling.masks(plan)), plan, config)
        for file in staging.rglob("*"):
            file.chmod(file.stat().st_mode & 0o700 | 0o644 | 0o111 * file.is_dir())
        staging.chmod(0o755)
        with suppress(FileNotFoundError):
            target.rmdir()  # an empty one
        os.replace(staging, target)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return tuple(target / name for name in written)


def _check_target(target: Path, folder: Path) -> None:
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist; create it first")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f"{target} exists already, and nothing is overwritten; choose another name")
    if folder.resolve() in target.resolve().parents:
        raise ExportError(f"{target} lies in the checkpoint {folder} itself; choose a place outside of it")


def _stated(model: Any, coupling: Coupling, plan: Plan, folder: Path) -> dict[str, Any] | None:
    """What config.json has to say of the cut network; None where it says what it said before."""
    config: Any = getattr(model, "config", None)
    path = folder / CONFIG
    if not callable(getattr(config, "to_dict", None)) or not path.is_file() or not plan.narrows:
        return None
    if not all(parameter.is_meta for parameter in model.parameters()):
        with empty_weights():
            model = type(model)(copy.deepcopy(config)).eval()
        remember_module(model, coupling)
    found = stated_config(model, coupling, plan, example_of(plan.inputs))
    if isinstance(found, str):
        log.warning(
            "%s cannot state the new widths, and says what it said before (%s); fxprune.from_pretrained loads the "
            "folder, the model's own does not", CONFIG, found,
        )  # fmt: skip
        return None
    stated: dict[str, Any] = _updated(json.loads(path.read_text(encoding="utf-8")), config.to_dict(), found.to_dict())
    return stated


def _updated(known: Any, old: Any, new: Any) -> Any:
    """`known` with what differs between `old` and `new`: what the file says beside that stays as it is."""
    if not isinstance(new, dict) or not isinstance(old, dict) or not isinstance(known, dict):
        return new
    changed = {key: value for key, value in new.items() if value != old.get(key)}
    changed = {key: _updated(known.get(key), old.get(key), value) for key, value in changed.items()}
    return {**known, **changed}


def _write(
    staging: Path, checkpoint: Checkpoint, slicing: Slicing, plan: Plan, config: Mapping[str, Any] | None
) -> list[str]:
    digests: dict[str, str] = {}
    size = elements = 0
    for file, metadata in checkpoint.files.items():
        stored = [item for item in checkpoint.tensors.values() if item.file == file]
        digests[file.name], wrote = _write_shard(staging / file.name, stored, metadata, slicing)
        size, elements = size + wrote[0], elements + wrote[1]
    if checkpoint.index is not None:
        about = dict(checkpoint.index.get("metadata") or {})
        about.update({key: new for key, new in (("total_size", size), ("total_parameters", elements)) if key in about})
        text = json.dumps({**checkpoint.index, "metadata": about}, indent=2)
        (staging / INDEX).write_text(text + "\n", encoding="utf-8")
    for file in sorted(checkpoint.folder.rglob("*")):
        inside = file.relative_to(checkpoint.folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not hidden and file.suffix not in _WEIGHTS and inside.name not in (INDEX, PLAN):
            (staging / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, staging / inside)
    if config is not None:
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_json(staging / PLAN, {"plan": plan.to_json(), "weights": digests, "in_config": config is not None})
    return list(digests)


def _write_shard(
    path: Path, tensors: list[Stored], metadata: Mapping[str, str], slicing: Slicing
) -> tuple[str, tuple[int, int]]:
    """One file of cut tensors, one after the other: its SHA-256, and the bytes and elements of its tensors.

    The format: the length of a JSON header as 8 bytes, the header, the data (safetensors, Hugging Face).
    """
    header: dict[str, dict[str, object]] = {"__metadata__": dict(metadata)} if metadata else {}
    place = elements = 0
    for stored in tensors:
        sizes = slicing.new_shape(stored.name)
        count = int(torch.Size(sizes).numel())
        length = count * _WIDTH.get(stored.dtype, 0)
        if not _WIDTH.get(stored.dtype):
            raise ExportError(f"{stored.file}: {stored.name} has the type {stored.dtype}, which cannot be cut here")
        header[stored.name] = {"dtype": stored.dtype, "shape": sizes, "data_offsets": [place, place + length]}
        place, elements = place + length, elements + count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for stored in tensors:
            for cut in _cut(stored, slicing.remaining(stored.name)):
                file.write(cut)
                digest.update(cut)
        assert file.tell() == 8 + len(text) + place, "the header states the sizes that cutting gives"
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), (place, elements)


def _cut(stored: Stored, remaining: Mapping[int, torch.Tensor]) -> Iterator[memoryview]:
    """The bytes of a tensor at the positions that remain in each narrowed dimension, some rows of it at a time.

    What is given shares one memory: new ones each time would not all be given back to the operating system.
    """
    count = stored.shape[0] if stored.shape else 1
    row = max(1, int(torch.Size(stored.shape[1:]).numel()) * _WIDTH[stored.dtype])
    step = max(1, _PIECE // row)
    rows = remaining.get(0, torch.arange(count))
    memory = [torch.empty(min(step, count) * row, dtype=torch.uint8) for _ in range(2)]
    for start in range(0, count, step):
        part = stored.rows(start, start + step)
        some = rows[(rows >= start) & (rows < start + step)] - start
        for dim, index in [(0, some), *((dim, index) for dim, index in remaining.items() if dim)]:
            shape = [len(index) if number == dim else size for number, size in enumerate(part.shape)]
            memory.reverse()
            place = memory[0][: torch.Size(shape).numel() * part.element_size()]
            part = torch.index_select(part, dim, index, out=place.view(part.dtype).view(shape))
        yield part.reshape(-1).view(torch.uint8).numpy().data


_PIECE = 1 << 24  # bytes of a tensor that are in memory at a time
_WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
