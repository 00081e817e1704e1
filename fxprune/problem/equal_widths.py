"""Groups whose widths stay equal, or in proportion (not their units): one size stands for many layers in a config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from fxprune.errors import ConfigError
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Resource
from passes import Coupling
from passes.analysis.polynomial import Widths

Sets = tuple[tuple[str, ...], ...]
BLOCKS = "blocks"
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a dotted name


def equal_sets(asked: Sequence[str | Sequence[str]], coupling: Coupling) -> Sets:
    """The sets of groups that `same_width` names: one a pattern, or one a list of patterns.

    Raises ConfigError for a pattern that no group matches, for groups of different sizes in a set, and for a group in
    two sets.
    """
    widths, found, where = coupling.widths, [], dict[str, str]()
    for item in asked:
        patterns = [item] if isinstance(item, str) else list(item)
        said = " or ".join(map(repr, patterns))
        names = tuple(name for name in widths if any(fnmatchcase(name, pattern) for pattern in patterns))
        if not names:
            raise ConfigError(f"same_width: no group is called {said}; the groups are {', '.join(widths)}.")
        sizes = {widths[name] for name in names}
        if len(sizes) > 1:
            raise ConfigError(
                f"same_width: {said} names groups of {', '.join(map(str, sorted(sizes)))} units; groups that get one "
                "width must have one to begin with."
            )
        for name in names:
            if name in where:
                raise ConfigError(f"same_width: group {name} is named by {where[name]} and by {said}; keep one.")
            where[name] = said
        found.append(names)
    return tuple(names for names in found if len(names) > 1)


def sets_of(asked: str | Sequence[Any] | None, coupling: Coupling) -> Sets:
    """The sets of the configuration's `same_width`: none, patterns, or `blocks`."""
    if not asked:
        return ()
    return block_sets(coupling) if asked == BLOCKS else equal_sets(list(asked), coupling)


def block_sets(coupling: Coupling) -> Sets:
    """Sets of groups of one size whose names differ in numbers alone: the same layer of repeated blocks."""
    sets: dict[tuple[str, int], list[str]] = {}
    for group in coupling.groups:
        sets.setdefault((_NUMBER.sub("*", group.name), group.size), []).append(group.name)
    return tuple(tuple(names) for names in sets.values() if len(names) > 1)


def smallest_unit(sizes: Sequence[int]) -> int:
    """Of the first of these sizes the least part that leaves all of them whole numbers in proportion.

    >>> smallest_unit([48, 48]), smallest_unit([32, 4])
    (1, 8)
    """
    return sizes[0] // math.gcd(*sizes)


def with_equal_grids(
    grids: Mapping[str, Grid], sets: Sets, widths: Mapping[str, int], steps: Mapping[str, int] | None = None
) -> dict[str, Grid]:
    """Grids that keep the groups of each set in proportion; a set is held back where one of its groups is.

    widths: of all groups before the search. steps: what the widths of some first groups must be multiples of.
    """
    steps = steps or {}
    made = dict(grids)
    for names in [*sets, *((first,) for first in steps if all(first not in names for names in sets))]:
        if any(name not in grids for name in names):
            made = {name: grid for name, grid in made.items() if name not in names}
            continue
        share = {name: widths[name] // math.gcd(*(widths[n] for n in names)) for name in names}  # of each, at count 1
        given = [(grids[name].step, share[name]) for name in names]
        given += [(steps[names[0]], share[names[0]])] if names[0] in steps else []
        step = math.lcm(*(one // math.gcd(one, part) for one, part in given))
        least = max(-(-grids[name].least // share[name]) for name in names)
        least = -(-least // step) * step
        made.update({name: Grid(name, step * share[name], least * share[name]) for name in names})
    return made


@dataclass(frozen=True)
class Linked:
    """Sets of groups in proportion, as a strategy sees them: the first group of a set stands for all.

    sizes: of all groups before the search.
    """

    sets: Sets
    sizes: Mapping[str, int]

    def grids(self, grids: Mapping[str, Grid]) -> dict[str, Grid]:
        """The grids without those of groups that another stands for."""
        hidden = {name for names in self.sets for name in names[1:]}
        return {name: grid for name, grid in grids.items() if name not in hidden}

    def lost(self, lost: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a width of a set loses: the sum over its groups, read at the widths in proportion."""
        made = dict(lost)
        for first, *others in self.sets:
            if first in lost:
                counts = np.arange(len(lost[first]))
                rest = [lost[name][counts * self.sizes[name] // self.sizes[first]] for name in others]
                made[first] = np.sum([lost[first], *rest], axis=0)
        return made

    def widths(self, widths: Mapping[str, Any]) -> dict[str, Any]:
        """`widths` with all groups of a set in proportion to the first, where that one is named."""
        made = dict(widths)
        for first, *others in self.sets:
            if first in widths:
                made.update({name: widths[first] * self.sizes[name] // self.sizes[first] for name in others})
        return made

    def resources(self, resources: Sequence[Resource]) -> tuple[Resource, ...]:
        """The resources as functions of the widths of first groups."""
        return tuple(_Linked(resource, self) for resource in resources) if self.sets else tuple(resources)


@dataclass(frozen=True)
class _Linked:
    resource: Resource
    linked: Linked

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def unit(self) -> str:
        return self.resource.unit

    @property
    def monotone(self) -> bool:
        return getattr(self.resource, "monotone", False)

    def value(self, widths: Widths | None = None) -> Any:
        return self.resource.value(None if widths is None else self.linked.widths(widths))
