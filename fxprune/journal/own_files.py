"""Which files of a folder are those of a search; another one of such a name is the user's, and is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from fxprune.errors import JournalError
from fxprune.io.storage import Lock, is_record, remove
from passes.documents.whole_files import leftovers

COMMAND = "command.json"
_RECORDS = ("run.json", "baseline.json", "curves.json", "removed.json", "goals.json", "result.json", COMMAND)
_ROUNDS = "round-[0-9][0-9][0-9][0-9]"
_OF_ROUNDS = ("round.json", "candidate-*.json")
_BESIDE = ("statistics.safetensors", f"{_ROUNDS}/*.safetensors", f"{_ROUNDS}/plan.json")  # what they are, records say


def taken(folder: Path) -> Lock:
    """The lock of a folder, for a search in it.

    Raises JournalError where one is running there, and, before anything is written, where a file is there that no
    search wrote, and that this one would write. Records that were truncated or altered are still known.
    """
    top = [folder / name for name in _RECORDS if (folder / name).exists()]
    foreign = [path for path in top if not is_record(path)]
    begun = len(foreign) < len(top) or any(map(is_record, _in_rounds(folder, *_OF_ROUNDS)))
    if not begun:
        foreign += chain.from_iterable(sorted(folder.glob(pattern)) for pattern in _BESIDE)
        foreign += _in_rounds(folder, *_OF_ROUNDS)
    if foreign:
        raise JournalError(
            f"{foreign[0]} is there, and it is no record of a search of fxprune; nothing was written. Choose another "
            "workdir, or move that file away."
        )
    return Lock(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a search that was killed left half written."""
    for place in (folder, *folder.glob(_ROUNDS)):
        for path in leftovers(place):
            remove(path)


def _in_rounds(folder: Path, *names: str) -> Iterator[Path]:
    return chain.from_iterable(sorted(folder.glob(f"{_ROUNDS}/{name}")) for name in names)
