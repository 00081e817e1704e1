"""`fxprune analyze --html`: a picture of a network. Groups are colours over the layers; what is frozen is hatched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import passes
from fxprune.io.printed_text import counted
from fxprune.journal.records import frozen_parts
from fxprune.problem.inputs import Analysed, described
from fxprune.problem.width_grids import layers_of
from fxprune.report import sections
from fxprune.report.html import Markup, amount, element, joined, table
from fxprune.report.page import document
from fxprune.report.style import HUES
from passes import Group

LABELLED = 3.0  # per cent of a bar that its label needs
MOST = 24  # pieces of a bar that are drawn apart


@dataclass(frozen=True)
class Piece:
    """Positions of a dimension in a row, as a share of it. number: of the group from 1 on; 0 is frozen."""

    start: float
    share: float
    number: int
    text: str


def network_page(given: Analysed) -> str:
    """The whole page; it loads nothing, runs no script, and is the same for the same network."""
    coupling, name = given.coupling, type(given.network).__name__
    costs, coverage = passes.cost(coupling), coupling.coverage()
    title = f"{name}: {counted(len(coupling.groups), 'group')} of units that can be removed"
    figures = [
        (f"{coverage.macs:.1%}", f"of {amount(costs.macs(), 'macs')} can be pruned"),
        (f"{coverage.params:.1%}", f"of {costs.params():,} parameters can be pruned"),
        (str(len(coupling.groups)), "groups"),
        (str(len({item.tensor for item in coupling.frozen})), "tensors with a dimension that stays"),
    ]
    tiles = (element("div", element("b", b), element("span", t), class_="tile") for b, t in figures)
    return document(
        title,
        joined(
            [
                element("h1", title),
                element("p", f"Counted for inputs of {described(given.example_inputs)}.", class_="note"),
                element("div", *tiles, class_="tiles"),
                picture(given),
                groups(coupling.groups, costs),
                sections.frozen(frozen_parts(coupling)),
            ]
        ),
    )


def picture(given: Analysed) -> Markup:
    """A row for each weight, in the order of the network: what its first two dimensions belong to."""
    tensors = dict((*given.network.named_parameters(), *given.network.named_buffers()))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    pieces = _pieces(given, shapes)
    widest = max((size for shape in shapes.values() for size in shape[:2]), default=1)
    rows = []
    for name, _ in given.network.named_parameters():
        shape = shapes[name]
        if len(shape) < 2 and (name.rpartition(".")[0] + ".weight") in shapes and not name.endswith(".weight"):
            continue  # a bias has the units of its weight
        bars = [bar(pieces.get((name, dim), []), shape[dim], widest) for dim in range(min(2, len(shape)))]
        whole = element("span", " x ".join(map(str, shape)), class_="muted")
        rows.append([element("span", name, class_="name"), whole, *bars, *[""] * (2 - len(bars))])
    text = (
        "A bar is a dimension of a weight (of most layers the first is its outputs, the second its inputs); its length "
        "is the square root of its units. Colour and number say which group the units belong to: what has one number "
        "shrinks together. Hatched parts stay; point at a part, or read the tables below, to see why."
    )
    header = ["Weight", "Shape", "First dimension", "Second dimension"]
    return joined(
        [
            element("h2", "The network"),
            element("p", text),
            element("div", table(header, rows), class_="network"),
        ]
    )


def bar(found: Sequence[Piece], size: int, widest: int) -> Markup:
    """One dimension as a bar whose parts are groups; read aloud it is the list of its parts."""
    parts = sorted(found, key=lambda piece: piece.start)
    said = "; ".join(dict.fromkeys(piece.text for piece in parts)) or f"{size} units that nothing reads"
    shown = []
    for piece in parts:
        kind = f"g g{(piece.number - 1) % HUES}" if piece.number else "frozen"
        label = str(piece.number) if piece.number and piece.share >= LABELLED else ""
        where = f"left:{piece.start:.3f}%;width:{piece.share:.3f}%"
        shown.append(element("span", label, class_=kind, style=where, title=piece.text))
    width = 100 * (size / widest) ** 0.5
    drawn = element("span", *shown, class_="bar", style=f"width:{width:.2f}%", role="img", aria_label=said)
    return element("span", drawn, class_="whole")


def _pieces(given: Analysed, shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], list[Piece]]:
    """For each dimension of each tensor the rows of positions that belong to one group, or stay."""
    owners: dict[tuple[str, int], np.ndarray] = {}
    texts: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)

    def owned(tensor: str, dim: int) -> np.ndarray:
        return owners.setdefault((tensor, dim), np.zeros(shapes[tensor][dim], dtype=int))

    for number, group in enumerate(given.coupling.groups, 1):
        for item in group.slices:
            owned(item.tensor, item.dim)[np.asarray(item.index).ravel()] = number
            texts[item.tensor, item.dim][number] = f"group {number}, {group.name}: {group.size} units"
    for number, fixed in enumerate(given.coupling.frozen, 1):
        # of an axis that is a product (heads by their size) a part may belong to a group; that is what can be done
        places = owned(fixed.tensor, fixed.dim)[fixed.start : fixed.stop]
        places[places == 0] = -number
        texts[fixed.tensor, fixed.dim][-number] = f"stays: {fixed.reason}"
    found = {}
    for place, numbers in owners.items():
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        if len(edges) > MOST:  # units of several groups in turns: each group's share, in a row
            numbers = np.sort(numbers)
            edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        size = len(numbers)
        found[place] = [
            Piece(100 * start / size, 100 * (stop - start) / size, max(0, int(numbers[start])), texts[place].get(
                int(numbers[start]), "does not take part"))
            for start, stop in zip(edges, edges[1:], strict=False)
        ]  # fmt: skip
    return found


def groups(found: Sequence[Group], costs: passes.Cost) -> Markup:
    """What each number stands for."""
    total = costs.macs()
    rows = []
    for number, group in enumerate(found, 1):
        share = 1 - costs.macs({group.name: 0}) / total if total else 0.0
        layers = layers_of(group)
        rows.append(
            [
                element("span", number, class_=f"chip g{(number - 1) % HUES}"),
                element("span", group.name, class_="name"),
                f"{group.size:,}",
                f"{share:.1%}",
                "yes" if group.mixed else "",
                element("span", sections.few(layers), class_="name"),
            ]
        )
    header = ["Number", "Group", "Units", "MACs", "Mixed", "Outputs of"]
    text = (
        "MACs: the share that the group's width has a part in. Mixed: a normalisation or mean runs over the units, so "
        "removing one changes the others."
    )
    return joined([element("h2", "Groups"), element("p", text), table(header, rows, ["Units", "MACs"])])
