"""A checksum inside a file, over all of it: one bit lost anywhere is found, whatever the format is.

Every written format has a place for a short text: the header of safetensors, a property of ONNX, the comment of a zip
archive (.pt2), a comment of Python. It reads `fxprune sha256 ` and 64 digits: the SHA-256 of the bytes before and after
the digits. The same text tells which files fxprune wrote.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "fxprune sha256 "
UNSEALED = MARK + "0" * 64
_SEAL = re.compile(re.escape(MARK).encode() + rb"([0-9a-f]{64})(?![0-9a-f])")
_PIECE = 1 << 24


def seal(path: Path) -> None:
    """Put the digest in the place of the zeros of UNSEALED, which the file holds once."""
    with _mapped(path, mmap.ACCESS_WRITE) as data:
        found = _SEAL.search(data)
        assert found is not None, f"{path}: written with UNSEALED in it"
        start, end = found.span(1)
        data[start:end] = _digest(data, start, end).encode()
        data.flush()


def sealed(data: bytes) -> bytes:
    """A file with its digest in the place of the zeros of UNSEALED, which it holds once."""
    found = _SEAL.search(data)
    assert found is not None, "written with UNSEALED in it"
    start, end = found.span(1)
    return data[:start] + _digest(data, start, end).encode() + data[end:]


def check_unchanged(path: Path, error: type[Exception], way: str) -> None:
    """Raises where something else than a sealed file is in this place. way: what to do then."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not is_sealed(path)):
        raise error(not_ours(path, way))


def not_ours(path: Path, way: str) -> str:
    """Why a file is not written."""
    return f"{path} exists, and fxprune did not write it, or it was changed since; nothing was written. {way}."


def is_sealed(path: Path) -> bool:
    """Whether fxprune wrote the file, and nobody changed it since."""
    try:
        with _mapped(path, mmap.ACCESS_READ) as data:
            found = list(_SEAL.finditer(data))
            # A weight could hold the text by chance, or a file another one: any place whose digest fits will do.
            return any(_digest(data, *place.span(1)) == place.group(1).decode() for place in found[:4])
    except OSError:
        return False


def mentions(path: Path, text: str) -> bool:
    """Whether the bytes of `text` stand in the file."""
    with _mapped(path, mmap.ACCESS_READ) as data:
        return data.find(text.encode()) >= 0


def sha256_of(path: Path) -> str:
    """The SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _mapped(path: Path, access: int) -> Iterator[mmap.mmap]:
    with open(path, "rb+" if access == mmap.ACCESS_WRITE else "rb") as file:
        if file.seek(0, 2) == 0:
            raise OSError(f"{path} is empty")
        with mmap.mmap(file.fileno(), 0, access=access) as data:
            yield data


def _digest(data: mmap.mmap | bytes, start: int, end: int) -> str:
    digest = hashlib.sha256()
    for low, high in ((0, start), (end, len(data))):
        for place in range(low, high, _PIECE):
            digest.update(data[place : min(place + _PIECE, high)])
    return digest.hexdigest()
