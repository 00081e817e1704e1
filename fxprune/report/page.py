"""The page: what was asked and what came of it at the top, then the plots, then everything behind them."""

from __future__ import annotations

from fxprune.journal.read_run import Run
from fxprune.report import data_sections, layers, sections
from fxprune.report.html import Markup, amount, element, escape, joined, score, seconds
from fxprune.report.plots import schedule, score_name, tradeoff
from fxprune.report.style import CSS, HUES, group_colours
from fxprune.resources.kinds import unit_of

GENERATOR = '<meta name="generator" content="fxprune">'


def page_of(run: Run) -> str:
    """The whole page; it loads nothing, runs no script, and is the same for the same run."""
    title = f"{run.model['class']} pruned to {' and '.join(map(str, run.budgets))}"
    body = joined(
        [
            element("h1", title),
            state(run),
            element("p", f"Counted for inputs of {run.inputs}.", class_="note"),
            *(element("div", element("b", "Damaged: "), text, class_="alert") for text in run.damage),
            tiles(run),
            plots(run),
            layers.layers(run),
            sections.widths(run),
            sections.rounds(run),
            data_sections.data(run),
            sections.frozen(run.frozen),
            sections.timings(run),
            sections.certificate(run),
            sections.run_facts(run),
        ]
    )
    return document(title, body)


def document(title: str, body: Markup) -> str:
    """A whole page of this content."""
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f"{GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{group_colours(HUES)}</style></head>\n<body>{body}</body></html>\n"
    )


def state(run: Run) -> Markup:
    """Whether the search is at its end, and how it ended."""
    if run.result is None:
        return element("span", f"in progress or interrupted, {len(run.rounds)} rounds finished", class_="badge")
    kind = "good" if run.result["met"] else "bad"
    return element("span", run.result["stopped"], class_=f"badge {kind}")


def tiles(run: Run) -> Markup:
    """The figures that are asked for first."""
    accepted = run.accepted
    last = run.rounds[accepted - 1] if accepted else None
    found: list[tuple[str, str]] = []
    for name, limit in run.limits.items():
        start, now = run.start[name], last.achieved[name] if last else run.start[name]
        note = f"of {amount(start, name)} remain; budget {limit / start:.1%}"
        found.append((f"{now / start:.1%}", note))
    now = last.score if last else run.baseline
    # A rise is not the search's merit alone: fine-tuning raises the dense network too.
    found.append((score(now), f"{score_name(run)}; {score(run.baseline)} before"))
    found.append((str(len(run.rounds)), f"rounds, {sum(len(r.candidates) for r in run.rounds)} candidates"))
    found.append((seconds(sum(r.seconds for r in run.rounds)), "of search"))
    if run.result is not None:
        found.append((f"{run.result['certificate']['max_error']:.1e}", "largest relative error, verified in float64"))
    return element(
        "div", *(element("div", element("b", b), element("span", t), class_="tile") for b, t in found), class_="tiles"
    )


def plots(run: Run) -> Markup:
    """Two plots for each budget."""
    parts = []
    for name in run.limits:
        parts += [
            figure(f"{score_name(run).capitalize()} and {unit_of(name)}", tradeoff(run, name)),
            figure(f"{unit_of(name)[:1].upper()}{unit_of(name)[1:]} after each round", schedule(run, name)),
        ]
    marks = [
        ("rounds", "dot", "background:var(--accent)"),
        ("candidates", "dot", "background:var(--faint)"),
        ("candidates whose score lies below the plot", "down", ""),
        ("the network that is returned", "ring", ""),
        ("budget", "rule", ""),
        ("target of a round", "", "height:2px;background:var(--ink);vertical-align:4px"),
    ]
    legend = (element("span", element("i", class_=kind, style=style), text) for text, kind, style in marks)
    return joined(
        [
            element("h2", "Trade-off"),
            element("div", *legend, class_="legend"),
            element("div", *parts, class_="charts"),
        ]
    )


def figure(title: str, svg: str) -> Markup:
    return element("figure", element("figcaption", element("b", title)), Markup(svg))
