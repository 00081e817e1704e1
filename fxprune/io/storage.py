"""Files that survive a kill at any moment: written aside, synced, renamed; JSON with a checksum; a folder's lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fxprune.errors import JournalError
from fxprune.io.seal import sha256_of
from passes.arguments import got
from passes.documents.strict_json import parse
from passes.documents.whole_files import write_whole

_BEGINNING = b'{"payload":{'  # of a record, without its spaces


class Damaged(Exception):
    """A file is not what was written; the text names it and says how."""


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`: a reader sees the old file or the whole new one, also after a power cut."""
    try:
        write_whole(path, [data])
    except OSError as error:
        raise refused(path, error) from error


def write_json(path: Path, payload: dict[str, object]) -> None:
    """Write a JSON object with the SHA-256 of its content."""
    write_bytes(path, record_bytes(payload))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, byte for byte; None if there is no such file. Raises Damaged where it is another."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(path, error) from error
    try:
        document = parse(text, finite=False)
        payload, expected = document["payload"], document["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, ValueError) else "no payload with its checksum is in it"
        raise Damaged(f"{path}: the file is truncated or altered: it is no journal record ({why})") from None
    if not isinstance(payload, dict) or _digest(payload) != expected or record_bytes(payload) != text:
        raise Damaged(f"{path}: the file was altered: its checksum does not fit its content")
    return payload


def is_record(path: Path) -> bool:
    """Whether a file begins as `write_json` begins one, be it cut off anywhere."""
    try:
        with open(path, "rb") as file:
            begun = b"".join(file.read(100).split())
    except OSError as error:
        raise refused(path, error) from error
    return begun.startswith(_BEGINNING) or _BEGINNING.startswith(begun)


def read_bytes(path: Path, sha256: str) -> bytes:
    """The bytes of a file whose checksum is known. Raises Damaged where it is missing or does not fit."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{path}: the file is missing") from None
    except OSError as error:
        raise refused(path, error) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(f"{path}: the file was truncated or altered: its checksum does not fit its {len(data):,} bytes")
    return data


def file_sha256(path: Path) -> str:
    """The checksum of a file that was just written."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise refused(path, error) from error


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from error


class Lock:
    """One process at a time in a folder: an advisory lock that the system drops when its holder dies.

    It stands for the path of its folder, so that who holds it can hand both on. Its file holds the id of the process
    while it is held. (filelock has the same lock, but empties the file of a holder, and what was forked keeps it.)
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", errors="replace")  # noqa: SIM115 - held as long as the lock
        except OSError as error:
            raise refused(self.path, error) from error
        except ValueError as error:  # a name with a zero byte
            raise JournalError(f"workdir: {got(str(folder))} is no name of a folder ({error}).") from None
        try:
            _lock(self._file)
        except OSError as error:
            holder = self._holder() or "unknown"
            self._file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise refused(self.path, error) from error
            raise JournalError(
                f"{folder}: another process (id {holder}) is searching in this folder; "
                "wait for it, or choose another workdir."
            ) from None
        if (holder := self._holder()) and not holder.isdecimal():
            self._file.close()
            raise JournalError(
                f"{self.path} is there, and no search of fxprune wrote it; nothing was written. Choose another "
                "workdir, or move that file away."
            )
        try:
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # what could not be written is tried once more on closing
                self._file.close()
            raise refused(self.path, error) from error
        _held.add(self)

    def _holder(self) -> str:
        self._file.seek(0)
        return self._file.read().strip()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Raises JournalError where the folder was deleted, moved or replaced since: nothing written there would be
        found again."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise refused(self.path, error) from error
        if not same:
            raise JournalError(
                f"{self.folder}: the folder was deleted or moved while the search ran in it, and what it kept with it; "
                "start the search again."
            )

    def release(self) -> None:
        """Give the folder back; once more does nothing."""
        if self._file.closed:
            return
        with suppress(OSError):  # a full disk: the file then names a process that is gone, and says no more than that
            self._file.truncate(0)
        self._file.close()

    def let_go(self) -> None:
        """In a forked process, which shares the lock: close it, and leave it to its holder."""
        self._file.close()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go() -> None:
    """A forked process (of a DataLoader) shares the lock: where it outlived a killed search, the folder stayed
    locked."""
    for lock in list(_held):
        lock.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def refused(path: Path, error: OSError) -> JournalError:
    """The words for what the file system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JournalError(
            f"{path}: the disk is full. Nothing that was finished is lost; free some space and start the same "
            "command again."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return JournalError(
            f"{path}: the folder cannot be written to ({error.strerror}); make it writable, or choose another workdir."
        )
    if error.errno == errno.EISDIR:
        return JournalError(f"{path}: a file is needed here, and a folder is there; remove it, or choose another name.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return JournalError(
            f"{path}: a folder is needed here, and something else is there ({error.strerror}); choose another name."
        )
    return JournalError(f"{path}: it cannot be read or written: {error}.")


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def record_bytes(payload: dict[str, object]) -> bytes:
    """What `write_json` writes."""
    return (json.dumps({"payload": payload, "sha256": _digest(payload)}, indent=1) + "\n").encode()


def _digest(payload: object) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
