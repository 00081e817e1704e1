"""The `fxprune` command: one small function a command, which imports what it needs when it runs."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import commands
from fxprune.cli.errors import reported_errors
from fxprune.cli.init import init
from fxprune.cli.latency import Model
from fxprune.cli.latency import app as latency
from fxprune.cli.paths import with_user_paths
from fxprune.io.printed_text import EscapingFormatter, echo, shown_warning, terminal

app = typer.Typer(
    name="fxprune",
    help="Make a trained PyTorch network smaller until it meets a budget, and prove that it still computes the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(latency, name="latency")

Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="shape of one input, as 1,3,224,224 or 2,16:int64, once for each input; left out: as the "
        "source of the model says, which is printed",
        show_default=False,
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from fxprune.version import __version__

        echo(f"fxprune {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="also messages that inform, not only warnings")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="errors alone, no warnings")] = False,
) -> None:
    """Structured pruning for PyTorch."""
    warnings.showwarning = shown_warning
    if quiet:
        warnings.simplefilter("ignore")
    if logging.lastResort is not None:  # what prints warnings where nobody set up logging
        logging.lastResort.setFormatter(EscapingFormatter())
    if verbose or quiet:
        handler = logging.StreamHandler()
        handler.setFormatter(EscapingFormatter("%(name)s: %(message)s"))
        for name in ("fxprune", "passes"):
            logger = logging.getLogger(name)
            logger.handlers = [handler]
            logger.setLevel(logging.INFO if verbose else logging.ERROR)
            logger.propagate = False


@app.command()
def analyze(
    model: Model,
    input: Inputs = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, for programs")] = False,
    html: Annotated[
        Path | None, typer.Option(help="write a picture of the network instead: groups as colours over its layers")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="also in the place of a file that fxprune did not write")
    ] = False,
) -> None:
    """Print what can be pruned, what cannot and why, and the share of MACs and parameters that this makes."""
    with reported_errors():
        from fxprune.cli.analyze import analysed_for_table, analysis_of, print_analysis
        from fxprune.cli.inputs import example_inputs, shapes_of
        from fxprune.cli.sources import load_model

        network = load_model(model)
        shapes = shapes_of(input or (), model, network)
        given = analysed_for_table(network, example_inputs(shapes.texts))
        if html is not None:
            from fxprune.report import write_analysis

            return echo(write_analysis(given, None, html, overwrite))
        found = analysis_of(given)
        if as_json:
            echo(json.dumps({**asdict(found), "inputs": shapes.texts}, indent=1))
        else:
            print_analysis(found, terminal(), str(shapes))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the pruned network, its plan and the figures")] = Path(
        "fxprune-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, same networks")] = 0,
) -> None:
    """Train a small residual network on real digit images and prune it to 40 % of its MACs.

    The digits come with scikit-learn: pip install 'fxprune[demo]'. Latency is
    measured in ONNX Runtime where 'fxprune[onnx]' is installed, and a page
    about the search written with 'fxprune[report]'.
    """
    with reported_errors():
        from fxprune.cli.demo import print_demo, run_demo

        console = terminal()
        found = run_demo(out, seed=seed, say=console.print)
        print_demo(found, console)

        def line(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        line(f"saved in {out}/: dense.safetensors, pruned.safetensors, plan.json, summary.json")
        line("the search as a page: " + (found.report or "none; pip install 'fxprune[report]' draws it"))
        line("next: fxprune init prune.yml --model torchvision:mobilenet_v2, then fxprune netadapt prune.yml")


app.command()(init)
commands.mount(app)
for command in (*app.registered_commands, *latency.registered_commands):
    # rich reads brackets as its markup, and 'fxprune[report]' would lose its second half
    if command.callback is not None:
        command.callback = with_user_paths(command.callback)
    command.help = (inspect.getdoc(command.callback) or "").replace("[", r"\[")
