"""What a plan names, checked: groups and blocks that there are, and units of a group."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import torch

from passes.analysis.residual_blocks import NO_BLOCKS, Blocks
from passes.arguments import got, listed, quoted, read_from
from passes.errors import PlanError


def unknown(name: str, known: Iterable[str], kind: str = "group") -> str:
    """The text of an error: there is no such group or block; the nearest name is given."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(known)[:10]) or 'none'}"
    return f"no {kind} is called {quoted(name)}; {hint}"


def checked_units(name: str, units: Sequence[int], size: int) -> tuple[int, ...]:
    """The kept units of a group. Raises PlanError for what is empty, twice, unsorted or out of range."""
    if isinstance(units, str | Mapping) or not hasattr(units, "__iter__") or getattr(units, "ndim", 1) != 1:
        raise PlanError(f"group {name!r}: got {got(units)}; expected the kept units, integers in 0..{size - 1}")
    if isinstance(units, torch.Tensor) and units.is_meta:
        raise PlanError(f"group {name!r}: got {got(units)}, which has no values; expected the kept units")
    kept = list(read_from(units.tolist() if hasattr(units, "tolist") else units, f"group {name!r}", PlanError))
    if not kept:
        raise PlanError(f"group {name!r}: no unit is kept; keep at least one of {size}")
    if any(isinstance(u, bool) or not isinstance(u, int) for u in kept):
        raise PlanError(f"group {name!r}: kept units are integers, not {quoted(kept[:5])}")
    if min(kept) < 0 or max(kept) >= size:
        raise PlanError(f"group {name!r}: kept units lie in 0..{size - 1}, got {min(kept)}..{max(kept)}")
    if len(set(kept)) != len(kept):
        raise PlanError(f"group {name!r}: a unit is kept twice")
    if sorted(kept) != kept:
        raise PlanError(f"group {name!r}: kept units must be in ascending order")
    return tuple(kept)


def checked_blocks(names: Iterable[str], known: Blocks) -> tuple[str, ...]:
    """The names of blocks to remove, in the order of the network. Raises PlanError for one that cannot be removed."""
    expected = "a list of names of residual blocks"
    given = listed(list(names) if isinstance(names, Mapping) else names, "plan: removed_blocks", expected, PlanError)
    if wrong := [name for name in given if not isinstance(name, str)]:
        raise PlanError(f"plan: removed_blocks: one is {got(wrong[0])}; expected {expected}")
    chosen = set(given)
    for name in sorted(chosen - known.offered.keys(), key=str):
        if known is NO_BLOCKS:
            raise PlanError("plan: removed_blocks: none were looked for; couple with depth=True")
        why = known.refused.get(name)
        raise PlanError(f"block {name!r} cannot be removed: {why}" if why else unknown(name, known.offered, "block"))
    return tuple(name for name in known.offered if name in chosen)
