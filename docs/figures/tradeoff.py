"""`python docs/figures/tradeoff.py`: draws the README's picture, for light and for dark pages, with the report's plots.

The search is that of `fxprune demo`: a small residual network, trained on the digits of scikit-learn, is pruned from
100 % to 25 % of its MACs; every candidate has 8 steps of fine-tuning and is scored on the validation part. The digits'
figures differ a little by machine, as a sum of floating point numbers does.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from fxprune import Budget, netadapt
from fxprune.cli.demo import DigitNet, accuracy, fit, load_digits
from fxprune.journal.read_run import read_run
from fxprune.report.plots import tradeoff
from fxprune.training.candidate import seeded

HERE = Path(__file__).parent
LIGHT = {"ink": "#1a222c", "muted": "#586472", "line": "#d9e0e7", "accent": "#1c63d5", "warm": "#c2570c",
         "faint": "#9fb3c8", "page": "#ffffff"}  # fmt: skip
DARK = {"ink": "#e4ebf2", "muted": "#9eabb8", "line": "#303b47", "accent": "#6aa9ff", "warm": "#f0935a",
        "faint": "#57697c", "page": "#10151b"}  # fmt: skip
TITLE = (
    "Validation accuracy of a small residual network on digits while NetAdapt lowers its MACs from 100 % to 25 %. "
    "Line: the network of each round. Dots: candidates. Dashed: the budget."
)


def search(workdir: Path) -> None:
    digits = load_digits()
    torch.set_num_threads(1)
    with seeded(0):
        dense = DigitNet()
        fit(dense, digits.train, 400, peak_lr=0.1)
    netadapt(
        dense, Budget("macs", ratio=0.25), example_inputs=digits.train.images[:1], workdir=workdir,
        train=lambda model, steps: fit(model, digits.train, steps, peak_lr=0.02),
        evaluate=lambda model: accuracy(model, digits.validation),
        config={"budget_reduce_rate_init": 0.12, "budget_reduce_rate_decay": 0.99, "netadapt_max_iter": 8,
                "netadapt_min_feature_size": 4},
    )  # fmt: skip


def standing_alone(svg: str, colours: dict[str, str]) -> str:
    """A plot of a report as a file: its own colours, a name for who cannot see it, a background."""
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    svg = svg.replace(">", f' font-family="sans-serif"><title>{TITLE}</title>', 1)
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], svg) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        search(Path(folder))
        drawn = tradeoff(read_run(Path(folder)), "macs")
    svg = drawn[drawn.index("<svg") : drawn.index("</svg>") + len("</svg>")]
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        (HERE / f"tradeoff-{name}.svg").write_text(standing_alone(svg, colours))


if __name__ == "__main__":
    main()
