"""Where in the user's code the tracer was called from, and how many values that line takes."""

from __future__ import annotations

import dis
import functools
import linecache
import sys
import types

from passes.process.source_lines import OWN_FILES


@functools.cache
def unpacked_into(code: types.CodeType, at: int) -> int | None:
    """Into how many names the instruction unpacks; None if it does not."""
    step = next(step for step in dis.get_instructions(code) if step.offset >= at)
    return step.argval if step.opname == "UNPACK_SEQUENCE" else None


def describe(frame: types.FrameType, line: int | None = None) -> str:
    """`file.py:41 in forward: if x.shape[1] > 3:`"""
    return describe_line(frame.f_code.co_filename, line or frame.f_lineno, frame.f_code.co_name)


def describe_line(filename: str, line: int, function: str) -> str:
    source = linecache.getline(filename, line).strip()
    source = source if len(source) <= 100 else source[:97] + "..."
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{line} in {function}" + (f": {source}" if source else "")


@functools.cache
def is_user_file(filename: str) -> bool:
    """Neither torch's, nor ours, nor the interpreter's."""
    return not filename.startswith((*OWN_FILES, "<"))


def user_frame() -> types.FrameType | None:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def stack_trace(within: types.CodeType) -> str:
    """The user's frames from the outermost forward called in `within` inwards, written as a traceback writes them."""
    frames: list[str] = []
    frame: types.FrameType | None = sys._getframe(2)
    inside = 0
    while frame is not None:
        code = frame.f_code
        if code is within:
            break
        if is_user_file(code.co_filename):
            frames.append(_frame_text(code.co_filename, frame.f_lineno, code.co_name))
            if code.co_name == "forward":
                inside = len(frames)
        frame = frame.f_back
    return "\n".join(reversed(frames[:inside]))


@functools.lru_cache(maxsize=4096)
def _frame_text(filename: str, line: int, function: str) -> str:
    source = linecache.getline(filename, line).strip()
    return f'  File "{filename}", line {line}, in {function}\n    {source}'
