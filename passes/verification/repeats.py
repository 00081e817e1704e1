"""Which runs a proof of a costly network may leave out, or make on a smaller example: those that repeat others.

What is left out is not assumed: both networks were run there on the meta device, and made the calls that are compared
elsewhere.
"""

from __future__ import annotations

from functools import cache, cached_property
from math import prod
from typing import Any

import torch
from torch import nn

from passes.analysis.coupling import Coupling
from passes.equality.draws import Draw, shrunk
from passes.stream.call_arguments import Arguments
from passes.stream.stream_copies import scripted_modules
from passes.verification.same_calls import Calls, MetaRuns, in_types_of, of_any_size, of_any_width

_MACS = 1 << 30  # of one run: a second in double precision
_ELEMENTS = 1 << 26  # of all parameters: half a gigabyte in double precision


def is_costly(coupling: Coupling) -> bool:
    """Whether a run in double precision takes a second or half a gigabyte, so that none should be made in vain.

    A program that asks for values has to be given them.
    """
    if coupling.module is None or coupling.module.real:
        return False
    tensors = coupling.structure.tensors
    elements = sum(prod(a.size for a in axes) for name, axes in tensors.items() if coupling.aliases[name] == name)
    macs = sum(prod(axis.size for axis in term) for record in coupling.structure.records for term in record.macs)
    return macs >= _MACS or elements >= _ELEMENTS


class Repeats:
    """A module, what was cut from it, and an example of inputs; said: what was found to repeat."""

    def __init__(
        self, dense: nn.Module, pruned: nn.Module, arguments: Arguments, seed: int, device: torch.device
    ) -> None:
        self._dense, self._pruned, self._arguments = dense, pruned, arguments
        self._seed, self._device = seed, device
        self.said: list[str] = []
        self._calls = cache(self._run)

    @cached_property
    def _runs(self) -> tuple[MetaRuns, MetaRuns]:
        return MetaRuns(self._dense), MetaRuns(self._pruned)

    def _run(self, pruned: bool, training: bool = False, gradients: bool = False) -> Calls | None:
        """What one of the two calls on the example."""
        return self._runs[pruned].calls(self._arguments, training, gradients)

    @cached_property
    def runs_without_values(self) -> bool:
        """Whether both run on the meta device in every mode, so that no part of them reads values unseen."""
        if scripted_modules(self._dense):
            return False
        return all(
            self._calls(pruned, training, gradients) is not None
            for pruned in (False, True)
            for training, gradients in ((False, False), (True, False), (False, True))
        )

    def smaller(self, training: bool = False) -> Draw | None:
        """The example at smaller sizes, at which the dense module makes the calls that both make on the example."""
        dense, pruned = self._calls(False, training), self._calls(True, training)
        if dense is None or of_any_width(dense) != of_any_width(pruned):
            return None
        wanted = of_any_size(dense)

        def fits(inputs: Any) -> bool:
            return of_any_size(self._runs[0].calls(in_types_of(self._arguments, inputs), training)) == wanted

        found = shrunk(self._arguments, self._seed, self._device, fits, several=training)
        if found is not None:
            self.said.append(f"the example at its own sizes{', in train mode' * training}: the calls of smaller ones")
        return found

    def in_train_mode(self) -> bool:
        """Whether train mode computes what evaluation mode does."""
        return self._is_the_same("train mode: the calls of evaluation", training=True)

    def with_gradients(self) -> bool:
        """Whether nothing depends on gradients being recorded."""
        return self._is_the_same("with gradients: the calls without", gradients=True)

    def _is_the_same(self, said: str, **mode: bool) -> bool:
        here = [self._calls(pruned, **mode) for pruned in (False, True)]
        same = None not in here and here == [self._calls(pruned) for pruned in (False, True)]
        self.said += [said] * same
        return same
