"""Where in the user's program something happens: the innermost line outside torch and this package."""

from __future__ import annotations

import os
import sysconfig
from functools import cache, lru_cache
from types import FrameType

import torch

# Folders whose code is not the user's: torch, and this package as a whole.
OWN_FILES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
# Nor does an error end in a line of the search that is installed beside this package, or of Python's own library.
_SEARCH = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "fxprune") + os.sep
_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = tuple(os.path.join(_LIBRARY, name) + os.sep for name in ("site-packages", "dist-packages"))


@cache
def _is_own(filename: str) -> bool:
    return filename.startswith(OWN_FILES)


@cache
def _is_told(filename: str) -> bool:
    """Whether a line there says where in the user's program an error came from."""
    if filename.startswith((*OWN_FILES, _SEARCH, "<frozen ")):
        return False
    return not filename.startswith(_LIBRARY) or filename.startswith(_INSTALLED)


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs code outside torch and this package."""
    return not _is_own(frame.f_code.co_filename)


def is_of_package(frame: FrameType) -> bool:
    """Whether a frame runs code of this package."""
    return frame.f_code.co_filename.startswith(OWN_FILES[1])


def users_line(frame: FrameType | None) -> str:
    """``file.py:line`` of the innermost frame outside torch and this package."""
    while frame is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else _spelled(frame.f_code.co_filename, frame.f_lineno)


@lru_cache(maxsize=4096)
def _spelled(path: str, line: int) -> str:
    return f"{os.path.basename(path)}:{line}"


def innermost_line(error: BaseException) -> str:
    """``file.py:line`` of the user's code that an error passed last; "" where it passed none."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if _is_told(path):
            place = _spelled(path, trace.tb_lineno)
        trace = trace.tb_next
    return place


def said(error: Exception) -> str:
    """One line: what was raised, and the innermost line of the user's code on the way."""
    text, place = str(error).strip().splitlines(), innermost_line(error)
    return f"{type(error).__name__}: {text[0] if text else ''}" + (f" ({place})" if place else "")
