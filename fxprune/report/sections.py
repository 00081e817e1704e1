"""The parts of a report that are tables and bars: widths, rounds, what is frozen, timings, the certificate, the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fxprune.journal.read_run import Run
from fxprune.journal.records import Candidate, FrozenPart, Round
from fxprune.journal.rounds_table import round_rows, shares
from fxprune.report.html import Markup, amount, element, escape, facts, folded, joined, score, seconds, table

FEW = 6  # of the layers, tensors and nodes that are named in one place; the others are counted


def widths(run: Run) -> Markup:
    """For each group a bar: its length the width before, the filled part the width after."""
    number = run.accepted
    after = run.rounds[number - 1].widths if number else run.original_widths
    widest = max(run.original_widths.values(), default=1)
    held = [name for name in run.original_widths if name not in run.grids]
    rows = []
    for name, before in run.original_widths.items():
        now = after[name]
        others = [layer for layer in run.layers.get(name, ()) if layer != name]
        note = f"with {few(others)}" if others else ""
        note += f"{'; ' if note else ''}not to be pruned" if name in held else ""
        share = f"{now / before:.0%}" if now != before else ""
        bar = element(
            "div",
            element("div", style=f"width:{100 * now / before:.2f}%"),
            class_="track" if now != before else "track same",
            style=f"width:{100 * before / widest:.2f}%",
            title=f"{name}: {before} units before, {now} after",
        )
        rows += [
            element("div", element("span", name, class_="name"), element("small", note) if note else ""),
            element(
                "div", f"{before} → {now}" if now != before else str(before), element("small", share), class_="count"
            ),
            element("div", bar, class_="bar"),
        ]
    return joined(
        [element("h2", "Widths"), element("p", _widths_text(run, after)), element("div", *rows, class_="bars")]
    )


def _widths_text(run: Run, after: dict[str, int]) -> str:
    narrowed = sum(after[name] != before for name, before in run.original_widths.items())
    return (
        f"{narrowed} of {len(run.original_widths)} groups are narrower. A group is what must be removed together: the "
        "outputs of the layers that are named, with every weight that reads them. A bar is as long as the group was "
        "wide, and filled as far as it is now."
    )


def rounds(run: Run) -> Markup:
    """What each round chose and why, then each round's candidates."""
    names = list(run.limits)
    resources = [f"{name} (target)" for name in names]
    measured = [name for name in names if name in run.rounds[0].measured] if run.rounds else []
    predicted = [f"{name} predicted" for name in measured]
    header = ["Round", *resources, *predicted, "Chosen", "Width", "Score", "Why", "Time"]
    if not run.rounds:
        return joined([element("h2", "Rounds"), element("p", "No round is finished yet."), _unfinished(run)])
    rows = [
        [
            row.round,
            *row.reached,
            *(f"{row.record.predicted[name] / run.start[name]:.1%}" for name in measured),
            element("span", row.chosen, class_="name"),
            row.changed,
            row.score,
            row.record.reason,
            seconds(row.record.seconds),
        ]
        for row in round_rows(run, names, shares(run))
        if row.record is not None
    ]
    accepted = run.accepted
    note = "Shares are of the start." + (" Marked: the network that is returned." if accepted else "")
    text = (
        "In each round every group is narrowed until the whole network meets the target; the candidates are fine-tuned "
        "and scored, and one of them is the network of the next round."
    )
    parts = [
        element("h2", "Rounds"),
        element("p", text),
        table(header, rows, ["Round", *resources, *predicted, "Score", "Time"], [accepted - 1] if accepted else []),
        element("p", note, class_="note"),
        element("p", "The network of a round: ", element("code", _restoring(run)), class_="note"),
        element("p", element("b", "Candidates of each round")),
        *(folded(_round_title(record), candidates(run, record.candidates, record.chosen)) for record in run.rounds),
        _unfinished(run),
    ]
    return joined(parts)


def _restoring(run: Run) -> str:
    return f"fxprune restore WORKDIR --round {max(1, run.accepted)} -o pruned.safetensors"


def _round_title(record: Round) -> Markup:
    tried = [c for c in record.candidates if c.score is not None]
    failed = sum(c.error is not None for c in record.candidates)
    missed = sum(not c.feasible for c in record.candidates)
    said = f"Round {record.round}: {len(tried)} scored"
    said += f", {missed} cannot meet the target" if missed else ""
    return Markup(escape(said) + (element("span", f", {failed} failed", class_="bad") if failed else ""))


def _unfinished(run: Run) -> Markup:
    if not run.unfinished:
        return Markup()
    title = f"Round {len(run.rounds) + 1}, in progress: {len(run.unfinished)} candidates are finished"
    return folded(title, candidates(run, run.unfinished, None))


def candidates(run: Run, found: Sequence[Candidate], chosen: int | None) -> Markup:
    """The candidates of a round, best score first."""
    names = list(run.limits)
    header = ["Candidate", "Width", *names, "Score", "Importance lost", "Training", "Evaluation", "Note"]
    ordered = sorted(found, key=lambda c: (c.score is None, -(c.score or 0.0), c.index))
    rows = [
        [
            element("span", c.group, class_="name"),
            ", ".join(str(width) for width in list(c.widths.values())[:FEW]) + (", ..." if len(c.widths) > FEW else ""),
            *(f"{c.resources[name] / run.start[name]:.1%}" for name in names),
            score(c.score),
            f"{c.lost:.3g}",
            seconds(c.seconds_train) if c.seconds_train else "",
            seconds(c.seconds_evaluate) if c.seconds_evaluate else "",
            _note(c, chosen),
        ]
        for c in ordered
    ]
    return table(header, rows, header[1:-1], [i for i, c in enumerate(ordered) if c.index == chosen])


def _note(candidate: Candidate, chosen: int | None) -> Markup:
    if candidate.error:
        return element("span", candidate.error, class_="bad")
    if candidate.index == chosen:
        return escape("chosen")
    if not candidate.feasible:
        return escape("does not meet the target at its least width")
    if candidate.score is not None:
        return escape("")
    screened = candidate.screened
    return escape("not tried: candidates_per_round" if screened is None else f"screened out: {screened:.4g}")


def frozen(found: Sequence[FrozenPart]) -> Markup:
    """What the analysis keeps as it is, by reason; of each entry its tensor, dim, reason, node and source."""
    tensors: dict[str, dict[str, None]] = defaultdict(dict)
    nodes: dict[str, dict[str, None]] = defaultdict(dict)
    for item in found:
        tensors[item["reason"]][f"{item['tensor']} (dimension {item['dim']})"] = None
        source = f" ({item['source']})" if item.get("source") else ""
        nodes[item["reason"]][f"{item['node']}{source}"] = None
    head = element("h2", "What stays as it is, and why")
    if not tensors:
        return joined([head, element("p", "Nothing: every dimension of every weight can be narrowed.")])
    rows = [
        [reason, few(list(nodes[reason])), element("span", few(list(kept)), class_="name")]
        for reason, kept in tensors.items()
    ]
    return joined([head, element("div", table(["Reason", "Given by", "Keeps"], rows), class_="reasons")])


def timings(run: Run) -> Markup:
    """Where the time went: of all rounds as they are recorded, and the share that is the search's own."""
    tried = [c for r in run.rounds for c in r.candidates] + list(run.unfinished)
    training, evaluation = sum(c.seconds_train for c in tried), sum(c.seconds_evaluate for c in tried)
    wall = sum(r.seconds for r in run.rounds)
    recorded = (run.result or {}).get("timings", {})
    workers = recorded.get("workers", 1)
    own = max(0.0, wall * workers - training - evaluation)
    total = training + evaluation + own or 1.0
    shares = [("training", training, "accent"), ("evaluation", evaluation, "warm"), ("everything else", own, "faint")]
    stack = element(
        "div",
        *(
            element(
                "div",
                style=f"width:{100 * part / total:.2f}%;background:var(--{colour})",
                title=f"{name}: {seconds(part)}",
            )
            for name, part, colour in shares
        ),
        class_="stack",
    )
    legend = element(
        "div",
        *(
            element(
                "span",
                element("i", style=f"background:var(--{colour})"),
                f"{name}: {seconds(part)} ({part / total:.1%})",
            )
            for name, part, colour in shares
        ),
        class_="legend",
    )
    rows: list[tuple[str, object]] = [("Rounds, by the clock", seconds(wall))]
    if run.rounds:
        rows.append(("A round, on average", seconds(wall / len(run.rounds))))
    if training or evaluation:
        rows.append(
            ("A candidate, on average", seconds((training + evaluation) / max(1, sum(c.trained for c in tried))))
        )
    if recorded:
        rows += [
            ("Analysis", seconds(recorded["analysis"])),
            ("Verification", seconds(recorded["verify"])),
            (
                "Outside training and evaluation",
                f"{recorded['overhead']:.1%} of the last process's {seconds(recorded['total'])}",
            ),
            ("Workers", workers),
        ]
    bars = [stack, legend] if training or evaluation else []
    return joined([element("h2", "Timings"), *bars, facts(rows)])


def certificate(run: Run) -> Markup:
    """The proof that the returned network computes what the masked one does."""
    head = element("h2", "Certificate")
    if run.result is None:
        return joined(
            [head, element("p", "The search is not finished; the network that it returns is certified at its end.")]
        )
    found: dict[str, object] = run.result["certificate"]
    done = (
        "as trained, was embedded in the dense one and run beside it"
        if found.get("trained")
        else "was run beside the dense one with the removed units masked out"
    )
    said = f"The pruned network {done}, in float64; every output agreed."
    rows = [
        (name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
        for name, value in found.items()
        if value not in ("", [], ())
    ]
    return joined([head, element("p", said), facts([(name, _figure(value)) for name, value in rows])])


def run_facts(run: Run) -> Markup:
    """Configuration, environment and fingerprints, folded away."""
    config = [(key, value) for key, value in run.config.to_dict().items() if value not in (None, [], {}, "")]
    return joined(
        [
            element("h2", "This run"),
            folded("Configuration", facts(config)),
            folded("Environment", facts(list(run.environment.items()))),
            folded(
                "Model",
                facts(
                    [
                        *run.model.items(),
                        ("inputs that costs are counted for", run.inputs),
                        *((f"{name}, before", amount(value, name)) for name, value in run.totals.items()),
                    ]
                ),
            ),
        ]
    )


def few(names: Sequence[str]) -> str:
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")


def _figure(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else value
