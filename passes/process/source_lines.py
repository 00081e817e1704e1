"""Where in the user's program something happens: the innermost line outside torch and this package."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from types import FrameType

import torch

# Folders whose code is not the user's: torch, and this package as a whole.
OWN_FILES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


@cache
def _is_own(filename: str) -> bool:
    return filename.startswith(OWN_FILES)


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


def innermost_line(error: Exception) -> str:
    """``file.py:line`` of the user's code that an error passed last."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not _is_own(path):
            place = _spelled(path, trace.tb_lineno)
        trace = trace.tb_next
    return place


def said(error: Exception) -> str:
    """One line: what was raised, and the innermost line of the user's code on the way."""
    text, place = str(error).strip().splitlines(), innermost_line(error)
    return f"{type(error).__name__}: {text[0] if text else ''}" + (f" ({place})" if place else "")
