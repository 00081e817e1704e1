"""Whether the files of an export are as they were written: read against their checksums, without running anything."""

from __future__ import annotations

import os
from pathlib import Path

from fxprune.errors import ExportError
from fxprune.exporters.files import DATA
from fxprune.exporters.safetensors_plan import read_pair
from fxprune.exporters.source.writer import WEIGHTS
from fxprune.integrations.huggingface import PLAN, written_in
from fxprune.io.module_state import read_state
from fxprune.io.seal import is_sealed, mentions, sha256_of
from passes.arguments import file_name


def check_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """All files of the export, or of the folder of a checkpoint, that `path` names; each is as it was written.

    Raises ExportError that names the file, and for weights the tensors, that are damaged, changed or missing. Nothing
    is executed: what does not pass need not be loaded.
    """
    file = file_name(path, "check_files", "the name of a file that export wrote", ExportError)
    if file.is_dir():
        return tuple(file / name for name in (PLAN, *written_in(file)["weights"]))
    if not file.is_file():
        raise ExportError(f"{file} does not exist, or is no file")
    if file.name.endswith(WEIGHTS):
        return check_files(file.with_suffix(""))
    if file.suffix in (".safetensors", ".json"):
        return read_pair(file)[0]
    if file.suffix == DATA:
        return check_files(file.with_suffix(""))
    if file.suffix not in (".pt2", ".onnx", ".py"):
        raise ExportError(f"{file}: exports are .pt2, .onnx, .safetensors (with .json) and .py files")
    if not is_sealed(file):
        raise ExportError(
            f"{file} is damaged, was changed, or is not of fxprune: its checksum does not fit its content"
        )
    if file.suffix == ".py":
        return file, _beside(file, file.with_suffix(WEIGHTS))
    data = file.with_name(file.name + DATA)
    if file.suffix == ".onnx" and (data.is_file() or mentions(file, "fxprune_data")):
        return file, _beside(file, data)
    return (file,)


def _beside(file: Path, weights: Path) -> Path:
    if not weights.is_file():
        raise ExportError(f"{weights} does not exist; it holds the weights of {file}, and they stay together")
    if weights.suffix == ".safetensors":
        read_state(weights)  # names the damaged tensors
    if not mentions(file, sha256_of(weights)):
        raise ExportError(f"{weights} is damaged, or is not what was written with {file}: its checksum is another one")
    return weights
