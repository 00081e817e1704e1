"""What a proof has seen: how well two networks agreed, on which inputs, and what could not be compared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from passes.analysis.coupling import Coupling
from passes.documents.certificate import Certificate
from passes.documents.plan import Plan
from passes.equality.comparison import Comparison
from passes.equality.draws import Draw
from passes.equality.leading_sizes import LeadingSizes, batch_of
from passes.errors import EquivalenceError, PrecisionError
from passes.graph.module_copies import owned_tensors

log = logging.getLogger(__name__)


def fails_in_own_types(what: str, pruned: nn.Module, said: str) -> PrecisionError:
    """The error for a pruned network that does not run in the types that it has, where the dense one does."""
    kinds = sorted({str(t.dtype) for _, t in owned_tensors(pruned) if t.is_floating_point() or t.is_complex()})
    several = f"; its weights and buffers are of several types ({', '.join(kinds)})" if len(kinds) > 1 else ""
    return PrecisionError(
        f"the pruned {what} fails in its own precision, where the dense one runs: {said.rstrip('.')}{several}"
    )


@dataclass
class Evidence:
    """Gathered over one set of inputs after another. taken: those at another size that both networks ran on."""

    worst: float = 0.0
    finite: float = 1.0
    outputs: int = 0
    batches: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    taken: list[Draw] = field(default_factory=list)
    leading: LeadingSizes = field(default_factory=LeadingSizes)

    def refused(self, draw: Draw, label: str, why: str, varied: str = "") -> None:
        """Note that nothing is proven on `draw`; `varied` says it in place of `: why` where a size was varied."""
        if not draw.varies:
            self.notes.append(f"not proven on {label}: {why}")
            return
        what = draw.varies + (label.removeprefix(draw.label) if label.startswith(draw.label) else "")
        if not any(what in note for note in self.notes):
            self.notes.append(f"not proven for another {what}{varied or f': {why}'}")

    def agreed(self, draw: Draw, label: str, found: Comparison, must: bool, also: str = "") -> bool:
        """Take in a comparison within the tolerance, and say whether it proves something.

        Raises EquivalenceError where an output holds no number at all on inputs that must (`must`) give some; `also`
        adds to what is said then.
        """
        if found.least_finite <= 0:
            empty = [number for number, share in enumerate(found.finite) if share == 0]
            what = f"output {empty[0]} holds no finite number" if empty else "no output holds a number"
            if must:
                raise EquivalenceError(
                    f"{what} on {label}{also}, so there is nothing to compare and nothing is certified; give example "
                    "inputs (with values, not on the meta device) on which the network computes numbers"
                )
            self.refused(draw, label, what)
            return False
        self.worst, self.finite = max(self.worst, found.error), min(self.finite, found.least_finite)
        self.outputs = max(self.outputs, found.tensors)
        self.inputs.append(label)
        batch = batch_of(draw)
        if batch is not None and (draw.of_batch or not draw.varies):
            self.batches.append(batch)
        if draw.varies and not any(known is draw for known in self.taken):
            self.taken.append(draw)
        return True

    def on_either(self, small: Draw | None, whole: Draw, proves: Callable[[Draw], bool]) -> None:
        """Compare on the smaller example; on the whole one where that proves nothing, or where the two differ.

        Statistics over the few values of a smaller example can be so near to zero variance that rounding alone makes
        two equal networks differ: what differs there is decided by the example itself.
        """
        said_before = len(self.notes)
        if small is not None:
            try:
                if proves(small):
                    return
            except EquivalenceError as error:
                log.info("compared again on the whole example: %s", error)
        del self.notes[said_before:]
        proves(whole)

    def certificate(
        self, plan: Plan, coupling: Coupling, tol: float, seed: int, trained: bool, perturbed: int,
        specialised: tuple[str, ...], same_calls: tuple[str, ...] = (),
    ) -> Certificate:  # fmt: skip
        """What was seen, as the document that a user keeps."""
        return Certificate(
            max_error=self.worst, tol=tol, batch_sizes=tuple(dict.fromkeys(self.batches)), runs=len(self.inputs),
            outputs=self.outputs, seed=seed,
            removed_units=sum(size - len(plan.keep[name]) for name, size in plan.sizes.items()),
            mixed=mixed_groups(coupling, plan), trained=trained, perturbed=perturbed, note="; ".join(self.notes),
            inputs=tuple(self.inputs), sizes=tuple(draw.label for draw in self.taken), finite=self.finite,
            specialised=specialised, removed_blocks=plan.removed_blocks, same_calls=same_calls,
        )  # fmt: skip


def mixed_groups(coupling: Coupling, plan: Plan) -> tuple[str, ...]:
    """The narrowed groups of which the masked network has operators that see the surviving units only."""
    return tuple(g.name for g in coupling.groups if g.mixed and len(plan.keep[g.name]) < g.size)
