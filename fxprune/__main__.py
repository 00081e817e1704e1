"""`python -m fxprune` is the `fxprune` command."""

from fxprune.cli import app

app(prog_name="fxprune")
