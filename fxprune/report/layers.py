"""What each layer costs before and after: a column a layer, however many there are, and a table with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.journal.read_run import Run
from fxprune.report.html import Markup, amount, element, folded, joined, table
from fxprune.report.plots import Column, columns
from fxprune.resources.layer_costs import LayerCosts

OPEN = 30  # rows of a table that is shown unfolded
SMALL = 0.01  # of the whole: a layer without MACs that has less of everything is counted with others
MEASURES = ("macs", "params", "ms")
TITLES = {"macs": "MACs", "params": "Parameters", "ms": "Milliseconds"}
RESOURCES = {"macs": "macs", "params": "params", "ms": "latency"}

Pair = tuple[float, float]


def layers(run: Run) -> Markup:
    """Nothing for a search that is not finished: what its layers will cost is not known."""
    if not run.layer_costs:
        return Markup()
    timed = run.layer_costs[0].ms_before is not None
    shown, others = _shown(run.layer_costs)
    text = (
        "Each column is a layer, in the order in which the network runs them; its pale part is what was removed. "
        "Point at one for its name and numbers."
    )
    if timed:
        text += " Milliseconds are predicted from the latency table; a layer's include what is fused with it."
    measures = MEASURES[: 3 if timed else 2]
    charts = [
        element(
            "figure",
            element("figcaption", element("b", f"{TITLES[measure]} of each layer")),
            Markup(columns(f"layers-{measure}", TITLES[measure], _columns(shown, measure))),
        )
        for measure in measures
    ]
    return joined(
        [
            element("h2", "Layers"),
            element("p", text),
            element("div", *charts, class_="charts"),
            _table(run.layer_costs, shown, others, measures),
        ]
    )


def _shown(found: Sequence[LayerCosts]) -> tuple[list[LayerCosts], list[LayerCosts]]:
    """The layers that are named one by one, and those that add little."""
    whole = {measure: sum(_pair(layer, measure)[0] for layer in found) for measure in MEASURES}
    large = [bool(layer.macs_before) or any(_pair(layer, m)[0] > SMALL * whole[m] for m in MEASURES) for layer in found]
    parts = [[layer for layer, much in zip(found, large, strict=True) if much is wanted] for wanted in (True, False)]
    return parts[0], parts[1]


def _pair(layer: LayerCosts, measure: str) -> Pair:
    before, after = getattr(layer, f"{measure}_before"), getattr(layer, f"{measure}_after")
    return (before or 0.0, after or 0.0)


def _columns(shown: Sequence[LayerCosts], measure: str) -> list[Column]:
    return [
        Column(*_pair(layer, measure), f"{_name(layer)}: {_change(*_pair(layer, measure), measure)}") for layer in shown
    ]


def _name(layer: LayerCosts) -> str:
    return layer.name or "the network itself"


def _change(before: float, after: float, measure: str) -> str:
    resource = RESOURCES[measure]
    if before == after:
        return amount(before, resource) if before else "none"
    return f"{amount(before, resource)} → {amount(after, resource)}"


def _table(
    whole: Sequence[LayerCosts], shown: Sequence[LayerCosts], others: Sequence[LayerCosts], measures: Sequence[str]
) -> Markup:
    def row(name: object, members: Sequence[LayerCosts]) -> list[object]:
        cells: list[object] = [name]
        for measure in measures:
            before, after = (sum(_pair(layer, measure)[place] for layer in members) for place in (0, 1))
            share = f"{after / before:.0%}" if before else ""
            cells += [_change(before, after, measure) if before else "", share]
        return cells

    header = ["Layer"]
    for measure in measures:
        header += [TITLES[measure], f"{TITLES[measure]} left"]
    rows = [row("whole network", whole), *(row(element("span", _name(f), class_="name"), [f]) for f in shown)]
    if others:
        rows.append(row(f"{len(others)} layers without MACs, such as normalisations", others))
    made = table(header, rows, header[1:], [0])
    return made if len(rows) <= OPEN else folded(f"All {len(whole)} layers", made)
