"""Files that appear whole or not at all, also after a power cut: written aside, synced, renamed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp"


def write_whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Put the blocks at `path`, one after the other: a reader sees the old file or the whole new one.

    The folder is made where it is missing. Raises OSError, and leaves nothing behind then.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")  # two processes may write one file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.writelines(blocks)
        move_whole({aside: path})
    except OSError:
        with suppress(OSError):  # the folder itself may refuse; the first error says why
            aside.unlink(missing_ok=True)
        raise


def leftovers(folder: Path) -> Iterator[Path]:
    """What `write_whole` left aside in a folder where its process was killed."""
    return (path for path in sorted(folder.glob(f"*{TEMPORARY}")) if re.search(r"\.[0-9a-f]{32}\.tmp\Z", path.name))


def move_whole(moves: Mapping[Path, Path]) -> None:
    """Give written files other names in one folder of the same disk, in this order, in the place of what is there.

    Raises OSError; nothing is moved before all are on the disk.
    """
    for file in moves:
        _sync(file)
    for file, target in moves.items():
        os.replace(file, target)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        for folder in {target.parent for target in moves.values()}:
            _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
