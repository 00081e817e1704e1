"""Paths that are written on the command line: `~` is the home folder also where no shell has expanded it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def with_user_paths(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose paths are those of the user (`passes.arguments.user_path`)."""

    @functools.wraps(command)
    def called(**given: object) -> Any:
        return command(**{name: _expanded(value) for name, value in given.items()})

    return called


def existing_file(text: str) -> Path:
    """A path of the user's at which a file is; any other is a mistake in the command line."""
    path = _expanded(Path(text))
    if not path.is_file():
        raise typer.BadParameter(f"{text}: there is no such file")
    return path


def _expanded(value: Any) -> Any:
    from passes.arguments import user_path

    if isinstance(value, list):
        return [_expanded(part) for part in value]
    return user_path(value) if isinstance(value, Path) else value
