"""What a command does about errors: one message and an exit code for those that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fxprune.io.printed_text import echo

INPUTS = (
    "Here their shapes are --input 1,3,224,224 (once for each input; 2,16:int64 for token numbers), or the key `input` "
    "of a configuration."
)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Errors that say what to do become one message; all others keep their traceback.

    Exit code 2: the command line names what is not there (as typer does for a wrong option); 1: all else.
    """
    from fxprune.errors import FxpruneError, SourceError
    from passes.errors import DoesNotRun, PassError

    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # who read what is printed has ended: nobody is left to tell
            raise typer.Exit(1) from error
        # Of a model's or a data set's code: it must not look like success.
        typer.secho(f"fxprune: code of the model or the data called sys.exit({error.code!r})", fg="red", err=True)
        raise typer.Exit(1) from error
    except (FxpruneError, PassError, ModuleNotFoundError) as error:
        text = str(error).removeprefix("netadapt: ")  # the name of the Python function, which was not called by name
        if isinstance(error.__cause__, DoesNotRun):
            text += f" {INPUTS}"
        echo(f"fxprune: {text}", err=True, color=typer.colors.RED)
        raise typer.Exit(2 if isinstance(error, SourceError) else 1) from error
