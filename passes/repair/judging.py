"""Whether all repairs together help: the outputs of the whole network on inputs that were held out of all sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from passes.graph.module_copies import owned_tensors
from passes.repair.batch_norms import reestimated
from passes.statistics.batches import Batch, batches_of
from passes.statistics.divergence import divergence, outputs_of

_SHARES = (1.0, 0.5, 0.25)


class HeldInputs:
    """Compares networks with the dense one on `inputs`. Without these nothing is compared, and repairs stay whole.

    A network with batch norms counts by the better of its own statistics and those of these inputs: either may be
    what it is used with in the end.
    """

    def __init__(self, inputs: Sequence[Batch], dense: nn.Module, sliced: nn.Module) -> None:
        self._dense, self._inputs = dense, inputs
        if inputs:
            self._limit = self._distance(sliced)

    def share_that_helps(self, repaired: nn.Module, slices: Mapping[str, Tensor]) -> float:
        """The share of all changes with which `repaired` is no further from the dense network than its slices are: 1, a
        half, a quarter or 0. It is left with this share. slices: by name what was changed, as it was.
        """
        if not self._inputs:
            return 1.0
        own = {name: tensor.detach() for name, tensor in owned_tensors(repaired) if name in slices}
        for share in _SHARES:
            if share < 1:
                for name, tensor in own.items():
                    tensor.copy_(torch.lerp(tensor, slices[name].detach(), 0.5))
            if self._distance(repaired) <= self._limit:
                return share
        for name, tensor in own.items():
            tensor.copy_(slices[name])
        return 0.0

    def _distance(self, network: nn.Module) -> float:
        """Outputs are not kept: of a vocabulary those of one batch may be larger than the network."""
        own, device = list(batches_of(network, self._inputs)), next(t.device for _, t in owned_tensors(network))
        found = dict.fromkeys((network, reestimated(network, own)), 0.0)  # one where it has no batch norms
        for batch, given in zip(batches_of(self._dense, self._inputs), own, strict=True):
            expected = [[tensor.to(device) for tensor in outputs_of(self._dense, [batch])[0]]]
            for form in found:
                found[form] += divergence(form, [given], expected) * max(batch.size, 1)
        return min((total for total in found.values() if not math.isnan(total)), default=math.inf)
