"""Files that appear whole or not at all: written in a folder beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.export.report import ExportError


def checked_target(path: str | os.PathLike[str]) -> Path:
    """The path, once its parent folder is known to exist and to be a folder."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name the file to write")
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`: what lies in it when the block ends is moved beside `target`.

    `target` itself is moved last, so whoever finds it finds all its companions. An error in the block leaves the
    folder of `target` as it was. Within the block files have their final names, for formats that refer to each other.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        written = sorted(folder.iterdir(), key=lambda file: (file.name == target.name, file.name))
        for file in written:
            _flush(file)
        for file in written:
            os.replace(file, target.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())
