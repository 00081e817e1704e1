"""Files that appear whole or not at all, and never in the place of one that fxprune did not write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import ExportError
from fxprune.io.seal import is_sealed, mentions, not_ours, sha256_of
from fxprune.registries import EXPORTERS
from passes import Plan, PlanError
from passes.arguments import file_name, is_a
from passes.documents.whole_files import move_whole

DATA = ".data"  # what torch.onnx adds to the name of the file of large weights


def checked_target(path: str | os.PathLike[str]) -> Path:
    """The path, once its parent folder is known to exist and to be a folder."""
    target = file_name(path, "path", "the name of the file to write", ExportError)
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name the file to write")
    return target


def checked_suffix(path: Path) -> Path:
    """The path, once its suffix is known to be one of an exporter."""
    if path.suffix not in EXPORTERS:
        known = ", ".join(EXPORTERS.list())
        raise ExportError(f"{path}: unknown suffix {path.suffix!r}; the known ones are {known}")
    return path


def written_by_fxprune(path: Path) -> bool:
    """Whether an export wrote this file, and it is still as it was written."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix == ".json":
        try:
            Plan.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, PlanError):
            return False
        return True
    if path.suffix == DATA:
        owner = path.with_suffix("")
        return is_sealed(owner) and mentions(owner, sha256_of(path))
    return is_sealed(path)


def check_free(*paths: Path, overwrite: bool) -> None:
    """ExportError where one of the files exists and is not one that fxprune wrote; `overwrite` insists."""
    is_a(overwrite, bool, "overwrite", "True or False", ExportError)
    for path in () if overwrite else paths:
        if os.path.lexists(path) and not written_by_fxprune(path):
            way = "Choose another name, or insist with overwrite=True (--overwrite on the command line)"
            raise ExportError(not_ours(path, way))


@contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target`: what lies in it when the block ends is moved beside `target`.

    `target` itself is moved last, so whoever finds it finds all its companions. An error in the block leaves the
    folder of `target` as it was. Within the block files have their final names, for formats that refer to each other.
    """
    check_free(target, overwrite=overwrite)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        mode = _usual_mode(folder)
        yield folder
        written = sorted(folder.iterdir(), key=lambda file: (file.name == target.name, file.name))
        check_free(*(target.parent / file.name for file in written), overwrite=overwrite)
        for file in written:
            os.chmod(file, mode)  # some writers make files that their owner alone may read
        move_whole({file: target.parent / file.name for file in written})
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """The mode of a file that `open` makes here: what the umask leaves of 0666. (Asking the umask sets it.)"""
    probe = folder / "mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode
