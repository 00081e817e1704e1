"""What a report says of calibration data: scores before and after repair, explained variance, what widths cost."""

from __future__ import annotations

from fxprune.journal.read_run import Run
from fxprune.report.html import Markup, element, folded, joined, table

SHARES = (0.75, 0.5, 0.25)  # of a group's units, at which its curve is shown


def data(run: Run) -> Markup:
    """Nothing for a search without calibration data."""
    if not run.calibrated:
        return Markup()
    text = (
        "Candidates are compared without training by the divergence of their outputs from the dense network's, on data "
        "that nothing was fitted to: 0 is equal. Kept: after refinement, or where that was no better, without it."
    )
    return joined([element("h2", "By the data"), element("p", text), _divergences(run), _layers(run), _curves(run)])


def _divergences(run: Run) -> Markup:
    rows = [
        [record.round, _figure(found.sliced), _figure(found.compensated), _figure(found.kept), record.score]
        for record in run.rounds
        if (found := record.repaired) is not None
    ]
    header = ["Round", "Sliced", "Compensated", "Kept", "Score"]
    return table(header, rows, header, [run.accepted - 1] if run.accepted else [])


def _layers(run: Run) -> Markup:
    last = run.rounds[run.accepted - 1].repaired if run.accepted else None
    if last is None or not last.layers:
        return Markup()
    rows = [
        [element("span", layer.name, class_="name"), _share(layer.before), _share(layer.after), layer.why]
        for layer in last.layers
    ]
    title = f"Variance of {len(rows)} layers' dense outputs that sliced and compensated weights explain"
    return folded(title, table(["Weight", "Sliced", "Compensated", "Note"], rows, ["Sliced", "Compensated"]))


def _curves(run: Run) -> Markup:
    if not run.curves:
        return Markup()
    after = run.rounds[run.accepted - 1].widths if run.accepted else run.original_widths
    rows = []
    for name, curve in run.curves.items():
        size = len(curve.scores)
        here = [_figure(curve.errors[max(1, round(share * size))]) for share in SHARES]
        kept = after[name]
        rows.append([element("span", name, class_="name"), size, kept, _figure(curve.errors[kept]), *here])
    header = ["Group", "Units", "Kept", "Cost", *(f"At {share:.0%}" for share in SHARES)]
    return folded("What each group loses by its width, alone and compensated", table(header, rows, header[1:]))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
