"""A graph rewritten on the meta device with every group cut at once: nothing is offered that cannot follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from torch import fx

from passes.analysis.coupling import Coupling
from passes.axes.expressions import Axis, Reason, Variable, leaves
from passes.transform.rewriting import Rewriting


def trial(gm: fx.GraphModule, coupling: Coupling) -> list[tuple[Axis, Reason]]:
    """Rewrite `gm` on the meta device with every group reduced at once; what cannot follow, with reasons.

    Groups keep prime numbers of units, different ones where they can, so that a size hidden in a program does not
    fit by accident. Where the program computes with sizes, a second trial reduces every other group alone.
    """
    masks = {}
    for number, variable in enumerate(coupling.variables.values()):
        primes = _primes_below(variable.size)
        masks[variable] = np.arange(variable.size) < primes[number % len(primes)]
    if not masks:
        return []
    first = Rewriting(gm, coupling, masks, whole=False)
    refused = list(first.refused)
    dense = coupling.structure.vals
    computes = any(isinstance(now, (int, float)) and now != dense.get(name) for name, now in first.numbers.items())
    if not refused and computes:
        refused = Rewriting(gm, coupling, dict(list(masks.items())[::2]), whole=False).refused
    return list(_unique(refused))


@cache
def _primes_below(size: int) -> list[int]:
    """The three largest primes below `size`, or 1 where there is none."""
    found: list[int] = []
    for candidate in range(size - 1, 1, -1):
        if all(candidate % d for d in range(2, int(candidate**0.5) + 1)):
            found.append(candidate)
            if len(found) == 3:
                break
    return found or [1]


def _unique(refused: Iterable[tuple[Axis, Reason]]) -> Iterator[tuple[Axis, Reason]]:
    seen: set[Variable] = set()
    for axis, reason in refused:
        new = set(leaves(axis)) - seen
        if new:
            seen |= new
            yield axis, reason
