"""Modules that lie in a certain folder are not imported, whoever asks for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from fxprune.errors import TrustError


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

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
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
