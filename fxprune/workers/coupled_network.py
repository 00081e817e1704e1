"""A network and its coupling, as they travel to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from passes import Coupling, couple


@dataclass(eq=False)
class CoupledNetwork:
    """A network that can be pickled with what its coupling is made of; another process couples it anew, once.

    depth: whether its residual blocks are variables as well. orders: how the units of outer blocks are formed (see
    `Coupling.formed`).
    """

    network: nn.Module
    example_inputs: object
    depth: bool
    orders: Mapping[str, np.ndarray]
    _coupling: Coupling | None = field(default=None, repr=False)

    @classmethod
    def of(cls, network: nn.Module, coupling: Coupling, example_inputs: object) -> CoupledNetwork:
        """A network that is coupled as `coupling`."""
        return cls(network, example_inputs, coupling.knows_blocks, coupling.orders, coupling)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_coupling": None}

    @property
    def coupling(self) -> Coupling:
        """The coupling of the network, made once in each process."""
        if self._coupling is None:
            self._coupling = couple(self.network, self.example_inputs, depth=self.depth).formed(self.orders)
        return self._coupling
