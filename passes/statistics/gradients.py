"""Importance by gradients: how the loss would change if a unit were gone, for each group and over all its slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes.analysis.coupling import Coupling
from passes.arguments import got
from passes.errors import PassError
from passes.process.source_lines import said
from passes.statistics.batches import Batch
from passes.stream.results import tensors_in

Loss = Callable[[Any, Any], Tensor]
SMALL = 8  # samples of one gradient: the square of a mean over many samples says little


class GradientSums:
    """Sums over small batches of g.w of a unit (all its slices together): squared, and as absolute values.

    loss: of (output, labels), or "sampled": cross entropy with labels drawn from the network's own output.
    """

    def __init__(self, coupling: Coupling, loss: Loss | str, seed: int) -> None:
        if isinstance(loss, str) and loss != "sampled":
            raise PassError(f"gradients: got {loss!r}, expected a loss of (output, labels), or 'sampled'")
        self.coupling, self.loss = coupling, loss
        self.generator = torch.Generator().manual_seed(seed)
        self.fisher = {group.name: np.zeros(group.size) for group in coupling.groups}
        self.taylor = {group.name: np.zeros(group.size) for group in coupling.groups}
        self.count = 0

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Add the gradients of each few samples of `batch`."""
        size = batch.size
        parts = [batch.part(at, min(at + SMALL, size)) for at in range(0, size, SMALL)] if size else [batch]
        parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        for part in parts:
            with torch.enable_grad():
                copies = {n: p.detach().requires_grad_() for n, p in parameters.items()}
                output = torch.func.functional_call(model, copies, part.args, dict(part.kwargs))
                loss = self._sampled(output) if isinstance(self.loss, str) else self._of(output, part.labels)
                found = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
            products = {
                name: (gradient * copies[name]).detach()
                for name, gradient in zip(copies, found, strict=True)
                if gradient is not None
            }
            self._sum(products)

    def _of(self, output: object, labels: object) -> Tensor:
        assert callable(self.loss), "a text is handled apart"
        try:
            found = self.loss(output, labels)
        except Exception as error:  # the user's own function
            raise PassError(f"observe: gradients: the loss fails on (output, labels): {said(error)}") from error
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
            raise PassError(f"observe: gradients: the loss gives {got(found)}; expected one number with a gradient")
        return found

    def _sum(self, products: dict[str, Tensor]) -> None:
        self.count += 1
        for group in self.coupling.groups:
            total = np.zeros(group.size)
            for item in group.slices:
                product = products.get(item.tensor)
                if product is None or item.role == "input":  # each unit once: as it is made, not as it is read
                    continue
                flat = product.movedim(item.dim, 0).reshape(product.shape[item.dim], -1).sum(1).double().cpu().numpy()
                total += flat[item.index].sum(1)
            self.fisher[group.name] += total**2
            self.taylor[group.name] += np.abs(total)

    def _sampled(self, output: object) -> Tensor:
        logits = first_logits(output)
        scores = logits.flatten(0, -2) if logits.dim() != 4 else logits.movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(scores.detach().float().softmax(1).cpu(), 1, generator=self.generator)[:, 0]
        return nn.functional.cross_entropy(scores, drawn.to(scores.device))


def first_logits(output: object) -> Tensor:
    """The first floating-point tensor of a network's output with at least two dimensions."""
    for tensor in tensors_in(output):
        if tensor.is_floating_point() and tensor.dim() > 1:
            return tensor
    raise PassError("gradients: the network's output holds no scores to draw labels from; give a loss instead")
