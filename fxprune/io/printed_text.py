"""Text on a terminal: names come from models, files and folders of others, and may hold what a terminal obeys.

Control characters, and characters that reorder or hide text, are printed as their escapes.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable
    from rich.segment import Segment

# Cc: controls (but line ends and tabs), Cf: invisible and reordering, Cs: halves of pairs, Zl and Zp: other line ends.
_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printed(value: object) -> str:
    r"""The text of a value, safe to send to a terminal.

    >>> printed("conv\x1b[2J")
    'conv\\x1b[2J'
    """
    text = str(value)
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(map(_character, text))


def _character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _SHOWN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def counted(number: int, name: str) -> str:
    """
    >>> counted(1, "group"), counted(1200, "group")
    ('1 group', '1,200 groups')
    """
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def echo(text: object, err: bool = False, color: str | None = None) -> None:
    """Print a line."""
    import typer

    typer.secho(printed(text), fg=color, err=err)


def shown_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """A warning as one line; where in the code it was given says nothing to somebody who runs a command."""
    lines = str(message).strip().splitlines() or [""]
    echo(f"{category.__name__}: {lines[0]}", err=True)


def terminal(stderr: bool = False) -> Console:
    """A console of rich in which text from outside cannot command the terminal."""
    from rich.console import Console, RenderHook

    class Escaping(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [_Escaped(item) for item in renderables]

    console = Console(stderr=stderr)
    console.push_render_hook(Escaping())
    return console


class _Escaped:
    """What rich renders, with its text as it may be printed; the colours and moves that rich itself adds stay."""

    def __init__(self, renderable: ConsoleRenderable):
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(printed(segment.text), segment.style)


class EscapingFormatter(logging.Formatter):
    """Log lines as a terminal may have them."""

    def format(self, record: logging.LogRecord) -> str:
        return printed(super().format(record))
