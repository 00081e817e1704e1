"""The plots of a report: matplotlib figures as SVG text in which colours are names that the page's style defines."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from fxprune.journal.read_run import Run
from fxprune.report.style import COLOURS
from fxprune.resources.kinds import unit_of

# Width and height in inches: at 72 units an inch one unit is one pixel of the page, so that text keeps its size.
LARGE, SMALL = (7.9, 4.3), (5.0, 4.0)
Draw = Callable[[Any], None]


def tradeoff(run: Run, resource: str) -> str:
    """Score over the resource, in percent of the start: every candidate, the rounds in their order, the budget."""
    start, limit = run.start[resource], run.limits[resource]
    rounds = [(100.0, run.baseline), *((_share(run, r.achieved, resource), r.score) for r in run.rounds)]
    tried = [c for r in run.rounds for c in r.candidates if c.score is not None] + [
        c for c in run.unfinished if c.score is not None
    ]
    points = [(_share(run, c.resources, resource), c.score) for c in tried]
    low, high = _range([score for _, score in rounds], [score for _, score in points if score is not None])

    def draw(axes: Any) -> None:
        inside = [(x, y) for x, y in points if y is not None and y >= low]
        below = [(x, low) for x, y in points if y is not None and y < low]
        axes.axvline(100 * limit / start, color=COLOURS["warm"], linestyle=(0, (4, 3)), linewidth=1.6, zorder=1)
        if inside:
            axes.scatter(*zip(*inside, strict=True), s=16, color=COLOURS["faint"], linewidths=0, zorder=2)
        if below:
            axes.scatter(*zip(*below, strict=True), s=26, marker="v", color=COLOURS["faint"], linewidths=0, zorder=2)
        x, y = zip(*rounds, strict=True)
        axes.plot(x, y, color=COLOURS["accent"], linewidth=1.6, marker="o", markersize=5, zorder=3)
        accepted = run.accepted
        axes.plot(
            *rounds[accepted], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=COLOURS["ink"],
            markeredgewidth=1.6, zorder=4,
        )  # fmt: skip
        axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        axes.set_xlabel(f"{unit_of(resource)}, % of the start")
        axes.set_ylabel(score_name(run))

    return _both(f"tradeoff-{resource}", draw)


def schedule(run: Run, resource: str) -> str:
    """The resource after each round, its target, and the budget, in percent of the start."""
    start, limit = run.start[resource], run.limits[resource]
    numbers = [r.round for r in run.rounds]

    def draw(axes: Any) -> None:
        targets = [100 * r.targets[resource] / start for r in run.rounds]
        reached = [_share(run, r.achieved, resource) for r in run.rounds]
        axes.axhline(100 * limit / start, color=COLOURS["warm"], linestyle=(0, (4, 3)), linewidth=1.6, zorder=1)
        axes.plot(
            [0, *numbers], [100, *reached], color=COLOURS["accent"], linewidth=1.6, marker="o", markersize=5, zorder=3
        )
        axes.scatter(numbers, targets, marker="_", s=140, color=COLOURS["ink"], linewidths=1.6, zorder=4)
        axes.set_xlabel("round")
        axes.set_ylabel(f"{unit_of(resource)}, % of the start")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.6, max([1, *numbers]) + 0.6)

    return _both(f"schedule-{resource}", draw)


def score_name(run: Run) -> str:
    if run.data_free:
        return "minus the importance lost"
    return "score" if run.evaluated else "minus the divergence from the dense outputs"


def _share(run: Run, values: dict[str, float], resource: str) -> float:
    return 100 * values[resource] / run.start[resource]


def _range(rounds: list[float], candidates: list[float]) -> tuple[float, float]:
    """Where the rounds and most candidates lie; one that failed badly must not press the others into a line."""
    high = max([*rounds, *candidates])
    low = min(rounds)
    if candidates:
        middle = float(np.median(candidates))
        low = min(low, max(min(candidates), middle - 3 * max(high - middle, 1e-12)))
    if high - low < 1e-9:
        low, high = low - 0.5 - abs(low) * 0.01, high + 0.5 + abs(high) * 0.01
    return low, high


def _both(name: str, draw: Draw) -> str:
    """The plot in two sizes, of which the page shows the one that fits."""
    return "".join(
        f'<div class="{kind}">{_svg(f"{name}-{kind}", draw, size)}</div>'
        for kind, size in (("large", LARGE), ("small", SMALL))
    )


def _svg(name: str, draw: Draw, size: tuple[float, float]) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError("reports are drawn with matplotlib: pip install 'fxprune[report]'") from error

    ink, muted, line = (COLOURS[key] for key in ("ink", "muted", "line"))
    settings: Any = {
        "svg.fonttype": "none",  # text stays text: searchable, in the page's font
        "svg.hashsalt": name,  # the same page for the same run, and names that no two plots of a page share
        "font.size": 12,
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": line,
        "xtick.color": line, "ytick.color": line, "xtick.labelcolor": muted, "ytick.labelcolor": muted,
        "axes.grid": True, "grid.color": line, "grid.linewidth": 0.8, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(size, layout="constrained")
        draw(figure.add_subplot())
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    named = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", text)
    for key, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{key})")
    return re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
