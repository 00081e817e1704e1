"""The plots of a report: matplotlib figures as SVG text in which colours are names that the page's style defines.

A point says what it is when it is pointed at: its `<title>`.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.journal.read_run import Run
from fxprune.report.style import COLOURS, LIGHT
from fxprune.resources.kinds import unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Width and height in inches: at 72 units an inch one unit is one pixel of the page, so that text keeps its size.
LARGE, SMALL = (7.9, 4.3), (5.0, 4.0)
Tips = dict[str, list[str]]
"""For artists by their gid the texts of their points, in the order in which they are drawn."""
Draw = Callable[[Any], Tips]


def tradeoff(run: Run, resource: str) -> str:
    """Score over the resource, in percent of the start: every candidate, the rounds in their order, the budget."""
    label, draw = _tradeoff(run, resource, COLOURS)
    return _both(f"tradeoff-{resource}", label, draw)


def tradeoff_figure(run: Run, resource: str) -> Figure:
    """As `tradeoff`, as a figure in the page's light colours."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError("figures are drawn with matplotlib: pip install 'fxprune[report]'") from error
    figure = Figure(LARGE, layout="constrained")
    _tradeoff(run, resource, LIGHT)[1](figure.add_subplot())
    return figure


def _tradeoff(run: Run, resource: str, colours: Mapping[str, str]) -> tuple[str, Draw]:
    """What it shows, in words, and what draws it."""
    start, limit = run.start[resource], run.limits[resource]
    rounds = [(100.0, run.baseline), *((_share(run, r.achieved, resource), r.score) for r in run.rounds)]
    tried = [(r.round, c) for r in run.rounds for c in r.candidates]
    tried += [(len(run.rounds) + 1, c) for c in run.unfinished]
    points = [
        (_share(run, c.resources, resource), c.score, f"round {number}, {c.group}") for number, c in tried
        if c.score is not None
    ]  # fmt: skip
    low, high = _range([score for _, score in rounds], [score for _, score, _ in points])
    unit = unit_of(resource)

    def said(x: float, y: float, name: str) -> str:
        return f"{name}: {x:.1f} % of the {unit}, {score_name(run)} {y:.5g}"

    def draw(axes: Any) -> Tips:
        inside = [(x, y) for x, y, _ in points if y >= low]
        below = [(x, low) for x, y, _ in points if y < low]
        axes.axvline(100 * limit / start, color=colours["warm"], linestyle=(0, (4, 3)), linewidth=1.6, zorder=1)
        if inside:
            axes.scatter(*zip(*inside, strict=True), s=16, color=colours["faint"], linewidths=0, zorder=2, gid="inside")
        if below:
            axes.scatter(
                *zip(*below, strict=True), s=26, marker="v", color=colours["faint"], linewidths=0, zorder=2, gid="below"
            )
        x, y = zip(*rounds, strict=True)
        axes.plot(x, y, color=colours["accent"], linewidth=1.6, marker="o", markersize=5, zorder=3, gid="rounds")
        accepted = run.accepted
        axes.plot(
            *rounds[accepted], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=colours["ink"],
            markeredgewidth=1.6, zorder=4,
        )  # fmt: skip
        axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        axes.set_xlabel(f"{unit}, % of the start")
        axes.set_ylabel(score_name(run))
        return {
            "inside": [said(*point) for point in points if point[1] >= low],
            "below": [said(*point) for point in points if point[1] < low],
            "rounds": [said(*point, f"round {n}" if n else "unpruned") for n, point in enumerate(rounds)],
        }

    label = said(*rounds[run.accepted], f"Trade-off over {len(run.rounds)} rounds; returned is round {run.accepted}")
    return label, draw


def schedule(run: Run, resource: str) -> str:
    """The resource after each round, its target, and the budget, in percent of the start."""
    start, limit = run.start[resource], run.limits[resource]
    numbers = [r.round for r in run.rounds]

    def draw(axes: Any) -> Tips:
        targets = [100 * r.targets[resource] / start for r in run.rounds]
        reached = [_share(run, r.achieved, resource) for r in run.rounds]
        axes.axhline(100 * limit / start, color=COLOURS["warm"], linestyle=(0, (4, 3)), linewidth=1.6, zorder=1)
        axes.plot(
            [0, *numbers], [100, *reached], color=COLOURS["accent"], linewidth=1.6, marker="o", markersize=5, zorder=3,
            gid="reached",
        )  # fmt: skip
        axes.scatter(numbers, targets, marker="_", s=140, color=COLOURS["ink"], linewidths=1.6, zorder=4, gid="targets")
        axes.set_xlabel("round")
        axes.set_ylabel(f"{unit_of(resource)}, % of the start")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.6, max([1, *numbers]) + 0.6)
        return {
            "targets": [f"round {n}: target {share:.1f} %" for n, share in zip(numbers, targets, strict=True)],
            "reached": [f"round {n}: {share:.1f} %" for n, share in enumerate([100.0, *reached])],
        }

    label = f"{unit_of(resource)} after each of {len(run.rounds)} rounds; the budget is {100 * limit / start:.1f} %"
    return _both(f"schedule-{resource}", label, draw)


@dataclass(frozen=True)
class Column:
    """A bar before and after, and what it says when it is pointed at."""

    before: float
    after: float
    text: str


def columns(name: str, unit: str, shown: Sequence[Column]) -> str:
    """Columns side by side, thin enough for a hundred and more."""

    def draw(axes: Any) -> Tips:
        from matplotlib.ticker import EngFormatter

        tips: Tips = {}
        for kind, colour in (("before", "faint"), ("after", "accent")):
            heights = [getattr(column, kind) for column in shown]
            bars = axes.bar(range(1, len(shown) + 1), heights, width=0.8, color=COLOURS[colour], linewidth=0)
            for number, (bar, column) in enumerate(zip(bars, shown, strict=True)):
                bar.set_gid(f"{kind}-{number}")
                tips[f"{kind}-{number}"] = [column.text]
        axes.set_xlabel("layer, in the order of the run")
        axes.set_ylabel(unit)
        axes.set_xlim(0.2, max(len(shown), 6) + 0.8)
        axes.grid(axis="x", visible=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return tips

    before, after = sum(column.before for column in shown), sum(column.after for column in shown)
    label = f"{unit} of {len(shown)} layers: {after / before:.1%} are left" if before else f"{unit}: none"
    return _both(name, label, draw)


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


def _both(name: str, label: str, draw: Draw) -> str:
    """The plot in two sizes, of which the page shows the one that fits."""
    return "".join(
        f'<div class="{kind}">{_svg(f"{name}-{kind}", label, draw, size)}</div>'
        for kind, size in (("large", LARGE), ("small", SMALL))
    )


def _svg(name: str, label: str, draw: Draw, size: tuple[float, float]) -> str:
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
        tips = draw(figure.add_subplot())
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib states the size of a figure"
    text = f'<svg {box[0]} role="img" aria-label="{html.escape(label)}">{text[text.index(">") + 1 :]}'
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for gid, texts in tips.items():
        text = _with_tips(text, gid, texts)
    named = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", text)
    for key, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{key})")
    return re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)


def _with_tips(svg: str, gid: str, texts: list[str]) -> str:
    """The points of an artist, each with its title; none where this matplotlib draws points in another way."""
    before, found, rest = svg.partition(f'<g id="{gid}">')
    own, following, after = rest.partition('<g id="')
    drawn = r"<use [^>]*/>" if "<use " in own else r"<path [^>]*/>"  # points, or one bar
    points = re.findall(drawn, own)
    if len(points) != len(texts):
        return svg
    said = iter(texts)
    own = re.sub(drawn, lambda point: f"<g><title>{html.escape(next(said))}</title>{point[0]}</g>", own)
    return before + found + own + following + after
