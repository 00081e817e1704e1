"""`python -m fxprune` is the `fxprune` command."""

from fxprune.cli.main import app

app(prog_name="fxprune")
