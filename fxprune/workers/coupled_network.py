"""A network and its coupling, as they travel to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from fxprune.io.tensors import put_tensors, tensors_of
from passes import Coupling, Plan, apply_plan, couple


@dataclass(eq=False)
class CoupledNetwork:
    """A network of a search with its coupling. It can be pickled; another process makes both anew, once.

    The coupling of a pruned network is derived from that of the network before, and plans are made for it: coupled by
    itself, the same network may have other groups and has another fingerprint. So another process does what a search
    does that goes on: it couples the `first` network, applies `plan` to it, and puts the tensors.

    plan: what made the network of `first`. depth: whether residual blocks are variables as well. orders: how the units
    of outer blocks are formed (see `Coupling.formed`).
    """

    first: nn.Module
    plan: Plan
    example_inputs: object
    depth: bool
    orders: Mapping[str, np.ndarray]
    _made: tuple[nn.Module, Coupling] | None = field(default=None, repr=False)
    _tensors: dict[str, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, network: nn.Module, coupling: Coupling, example_inputs: object, first: nn.Module, plan: Plan
    ) -> CoupledNetwork:
        """A network that is coupled as `coupling`, and that `plan` made of `first`."""
        return cls(first, plan, example_inputs, coupling.knows_blocks, coupling.orders, (network, coupling))

    def __getstate__(self) -> dict[str, object]:
        tensors = tensors_of(self.network) if self.plan.narrows else None
        return {**self.__dict__, "_made": None, "_tensors": tensors}

    @property
    def network(self) -> nn.Module:
        """The network, for which passes know its coupling."""
        return self._both[0]

    @property
    def coupling(self) -> Coupling:
        return self._both[1]

    @property
    def _both(self) -> tuple[nn.Module, Coupling]:
        if self._made is None:
            network, coupling = self.first, couple(self.first, self.example_inputs, depth=self.depth)
            if self._tensors is not None:
                network, coupling = apply_plan(network, self.plan), coupling.after(self.plan)
                put_tensors(network, self._tensors)
                self._tensors = None
            self._made = network, coupling.formed(self.orders)
        return self._made
