"""What holds of a coupling that was found by running a module: sizes outside its tensors that follow its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from passes.axes.expressions import Axis, Variable
from passes.axes.index_sets import Mask, rename, survivors
from passes.stream.restated_calls import Position, Site


@dataclass(frozen=True)
class Edit:
    """A size that a module keeps outside its tensors: an integer attribute that is the product of lengths of axes.

    path: of the module. attribute: names and positions that lead to the integer, ``("config", "heads")``.
    """

    path: str
    attribute: tuple[str | int, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Literal:
    """A number in a module's program that has to change: an argument of a call (see `passes.stream.restated_calls`).

    path: of the module that makes the call. axes: the argument is the product of their lengths; for a call that splits
    its argument the sizes of the pieces, one axis each. value: where `axes` is empty, what the argument was before
    anything was removed, which it has to remain. negative: a place that is counted from the end. absolute: the program
    computes it from another pruned size, so that it may not be scaled. order: the argument is an index of these
    positions of the axis, of which those that are left get their new numbers.
    """

    path: str
    site: Site
    position: Position
    axes: tuple[Axis, ...] = ()
    value: object = None
    negative: bool = False
    absolute: bool = False
    order: tuple[int, ...] | None = None

    def left(self, keep: Mapping[Variable, Mask]) -> Literal:
        """This literal with its order in the new numbers of the positions that are left."""
        if self.order is None:
            return self
        remain = survivors(self.axes[0], keep)
        new = np.cumsum(remain) - 1
        return replace(self, order=tuple(int(new[place]) for place in self.order if remain[place]))


@dataclass(frozen=True)
class ModuleFacts:
    """What holds of a coupling that was found by running a module.

    edits: the sizes in its attributes that follow its groups. literals: those in its program. real: it was run on
    values. specialised: what the runs were fixed to, in sentences. turned: the lines whose conditions were followed
    with the other answer as well.
    """

    edits: tuple[Edit, ...] = ()
    literals: tuple[Literal, ...] = ()
    real: bool = False
    specialised: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()

    def renamed(self, new: Mapping[Variable, Axis], keep: Mapping[Variable, Mask]) -> ModuleFacts:
        """These facts of the network that is left when variables are replaced by smaller ones."""
        edits = [replace(e, axes=tuple(rename(axis, new, keep) for axis in e.axes)) for e in self.edits]
        left = [literal.left(keep) for literal in self.literals]
        literals = [replace(i, axes=tuple(rename(axis, new, keep) for axis in i.axes)) for i in left]
        return replace(self, edits=tuple(edits), literals=tuple(literals))
