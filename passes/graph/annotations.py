"""What the passes note of a graph, in `gm.meta`: it travels with copies and into files, as a graph's other notes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from passes.documents.certificate import Certificate
from passes.documents.plan import Plan

KEY = "passes"


class Annotation:
    """What the passes note of a network. Never changed, so that copies share it; none of its tensors is there."""

    def __deepcopy__(self, memo: dict[int, object]) -> Annotation:
        return self


@dataclass(frozen=True)
class Facts(Annotation):
    """What is known of one graph.

    plan: that made it, relative to the graph that was last coupled. coupling, digest: its analysis (a `Coupling`), and
    the fingerprint that the graph then had. evidence: the groups in plain words, which a file keeps in its place.
    certificate: of the last proof that it computes what the masked original does. specialised: what it was captured
    for, in sentences. pending: a comparison with its module that is still to be made (see passes/frontend/fidelity.py).
    """

    plan: Plan | None = None
    coupling: Any = field(default=None, repr=False)
    digest: str = ""
    evidence: tuple[str, ...] = ()
    certificate: Certificate | None = None
    specialised: tuple[str, ...] = ()
    pending: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        """All but the analysis, which holds the whole tape; it is made anew where it is wanted."""
        plain = {**self.__dict__, "coupling": None, "digest": "", "pending": None}
        return {**plain, "evidence": self.evidence or _evidence(self.coupling)}


def facts_of(gm: fx.GraphModule) -> Facts:
    """What is noted of `gm`; empty facts where nothing is."""
    found = gm.meta.get(KEY)
    return found if isinstance(found, Facts) else Facts()


def note(gm: fx.GraphModule, **changes: Any) -> None:
    """Note these facts of `gm` beside what is known."""
    gm.meta[KEY] = replace(facts_of(gm), **changes)


def forgetting_proofs(network: nn.Module) -> nn.Module:
    """The network itself, whose weights are about to change: no proof of it holds any longer."""
    if isinstance(network, fx.GraphModule):
        note(network, certificate=None)
    return network


def specialised_in(gm: fx.GraphModule) -> tuple[str, ...]:
    """What `gm` was captured for (a mode, a flag, a state), in sentences; it may compute something else otherwise."""
    return facts_of(gm).specialised


def evidence_of(gm: fx.GraphModule) -> tuple[str, ...]:
    """The groups of `gm` and where they occur, a line each; also of a graph that was loaded from a file."""
    facts = facts_of(gm)
    return facts.evidence or _evidence(facts.coupling)


def _evidence(coupling: Any) -> tuple[str, ...]:
    return () if coupling is None else tuple(_line(group) for group in coupling.groups)


def _line(group: Any) -> str:
    places: Sequence[str] = [f"{item.tensor} dim {item.dim} ({item.role})" for item in group.slices]
    return f"{group.name}: {group.size} units{', mixed' if group.mixed else ''} in {', '.join(places)}"
