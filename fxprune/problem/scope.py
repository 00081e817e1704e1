"""Parts of a model: a scope restricts which parameters may be cut; costs and proofs are those of the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from torch import nn

from fxprune.errors import InputError
from passes import Coupling, Group
from passes.arguments import got, quoted


def scope_names(model: nn.Module, scope: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of a scope, checked to be submodules of the model; none for no scope."""
    if scope is None:
        return ()
    if not isinstance(scope, str | tuple | list):
        raise InputError(f"netadapt: scope: got {got(scope)}; expected the name of a submodule, or a list of names.")
    names = (scope,) if isinstance(scope, str) else tuple(scope)
    if not names:
        raise InputError("netadapt: scope names no submodule; leave it out to prune the whole model.")
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in names:
        if name not in known:
            near = ", ".join(map(repr, get_close_matches(str(name), known, 3, 0.5) or known[:5]))
            raise InputError(
                f"netadapt: scope {quoted(name)} is no submodule of the model; among those that are: {near}."
            )
    return tuple(dict.fromkeys(names))


def groups_inside(coupling: Coupling, names: Collection[str]) -> dict[str, Group]:
    """The groups whose tensors, under all names that they have, lie in the named submodules."""
    aliases = _aliases(coupling)
    return {group.name: group for group in coupling.groups if not _outside(group, aliases, names)}


def nothing_inside(coupling: Coupling, names: Collection[str], most: int = 5) -> str:
    """Why no group lies in a scope: what reaches out of it, and what is frozen in it."""
    aliases, said = _aliases(coupling), []
    for group in coupling.groups:
        outside = _outside(group, aliases, names)
        if outside and len(outside) < len(_tensors(group, aliases)):
            said.append(f"group {group.name!r} also cuts {outside[0]}, which is outside")
    said += [str(item) for item in coupling.frozen if _lies_in(item.tensor, names)]
    return "; ".join(list(dict.fromkeys(said))[:most]) or "it holds no weights that run on these example inputs"


def _aliases(coupling: Coupling) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, first in coupling.aliases.items():
        found[first].append(name)
    return found


def _tensors(group: Group, aliases: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(name for item in group.slices for name in aliases.get(item.tensor, [item.tensor])))


def _outside(group: Group, aliases: dict[str, list[str]], names: Collection[str]) -> list[str]:
    return [tensor for tensor in _tensors(group, aliases) if not _lies_in(tensor, names)]


def _lies_in(tensor: str, names: Collection[str]) -> bool:
    return any(tensor.startswith(f"{name}.") for name in names)
