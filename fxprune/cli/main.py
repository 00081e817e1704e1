"""The `fxprune` command: one small function a command, which imports what it needs when it runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import commands
from fxprune.cli.errors import reported_errors
from fxprune.cli.latency import app as latency
from fxprune.io.printed_text import EscapingFormatter, terminal

app = typer.Typer(
    name="fxprune",
    help="Make a trained PyTorch network smaller until it meets a budget, and prove that it still computes the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(latency, name="latency")

Model = Annotated[str, typer.Argument(help="torchvision:NAME, or package.module:function that returns the model")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="shape of one input, as 1,3,224,224 or 2,16:int64, once for each input; left out: one image or clip",
        show_default=False,
    ),
]


@app.callback()
def main() -> None:
    """Structured pruning for PyTorch."""
    if logging.lastResort is not None:  # what prints warnings where nobody set up logging
        logging.lastResort.setFormatter(EscapingFormatter())


@app.command()
def analyze(model: Model, input: Inputs = None) -> None:
    """Print what can be pruned, what cannot and why, and the share of MACs and parameters that this makes."""
    with reported_errors():
        from fxprune.cli.analyze import analyze_model, print_analysis
        from fxprune.cli.sources import default_shape, example_inputs, load_model

        inputs = example_inputs(input or [default_shape(model)])
        print_analysis(analyze_model(load_model(model), inputs), terminal())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the pruned network, its plan and the figures")] = Path(
        "fxprune-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="same seed, same networks")] = 0,
) -> None:
    """Train a small residual network on real digit images and prune it to 40 % of its MACs."""
    with reported_errors():
        from fxprune.cli.demo import print_demo, run_demo

        console = terminal()
        print_demo(run_demo(out, seed=seed, say=console.print), console)
        console.print(f"saved in {out}/: pruned.safetensors, plan.json, summary.json", markup=False)


commands.mount(app)
