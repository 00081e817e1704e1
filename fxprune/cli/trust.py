"""What the folder of a search may have run: nothing that the user did not name, and nothing that lies in it.

A folder may come from anyone. Its weights, plans and records are read as data. The model and the data of a search are
code, which its `command.json` only names: that code is imported where the user says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import TrustError

if TYPE_CHECKING:
    from fxprune.cli.jobs import Job
    from fxprune.config.keys import NetAdaptConfig

BUILT_IN = {"model": ("torchvision",), "data": ("cifar10", "cifar100", "imagenet")}


def check_trusted(
    job: Job, workdir: Path, kept: NetAdaptConfig | None, own: NetAdaptConfig | None, trust: bool
) -> list[str]:
    """What a folder has imported or reached, in words; TrustError where the user has not said that it may be.

    `job` and `kept`: the names and the configuration in the folder; kept None: only the model is built. `own`: a
    configuration of the user, from the command line; what it says as well is the user's own word. `trust`: all is.
    """
    named = {
        f"the {part}": (name, own is not None and getattr(own, part) == name)
        for part, name in (("model", job.model), ("data", job.data if kept is not None else None))
        if name is not None and name.partition(":")[0] not in BUILT_IN[part]
    }
    address = kept.ray.get("address") if kept is not None and kept.workers == "ray" else None
    if address is not None:
        same = own is not None and own.ray.get("address") == address
        named["the Ray cluster at"] = (f"{address}, to which code is sent and from which it comes", same)
    foreign = [f"{what} {name}" for what, (name, is_own) in named.items() if not is_own]
    if foreign and not trust:
        raise TrustError(
            f"{workdir}: this folder names code to run: {'; '.join(foreign)}. If you know where the folder comes from, "
            "pass --trust; or pass --config FILE, your own configuration, which names the same. Nothing was imported."
        )
    return [f"{what} {name}" for what, (name, _) in named.items()]


@contextmanager
def nothing_from(folder: Path) -> Iterator[None]:
    """Within the block a module that lies in `folder` is not imported: TrustError, whoever asks for it."""
    finder = _Refusing(folder)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def may_hold_modules(folder: str) -> bool:
    """Whether modules may be looked for in a folder: not where `nothing_from` refuses them."""
    return not any(isinstance(finder, _Refusing) and finder.holds(folder) for finder in sys.meta_path)


class _Refusing:
    def __init__(self, folder: Path):
        self.folders = {os.path.abspath(folder), os.path.realpath(folder)}

    def holds(self, path: str) -> bool:
        forms = (os.path.abspath(path), os.path.realpath(path))
        return any(os.path.commonpath([form, folder]) == folder for form in forms for folder in self.folders)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            places = [*([spec.origin] if spec.has_location else []), *(spec.submodule_search_locations or ())]
            inside = next((place for place in places if place is not None and self.holds(place)), None)
            if inside is not None:
                raise TrustError(
                    f"module {name!r} would be imported from {inside}, in the folder of the search; code is never "
                    "taken from there. Move it out of the folder, and start the command elsewhere."
                )
        return None  # the ordinary finders go on
