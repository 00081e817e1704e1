"""How far a network's outputs are from those of the dense one, as one number, for outputs of any structure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from passes.statistics.batches import Batch
from passes.stream.network_copies import apart
from passes.stream.results import tensors_in

_ROWS = 1024  # of results whose number differs that are compared


def tensors_out(output: object) -> list[Tensor]:
    """The floating-point tensors of a network's output: of tuples, mappings, dataclasses and other objects.

    A single number beside others (the loss that some networks compute as well) is left out; so are caches of attention.
    Complex ones are given by their real and imaginary parts, as (samples, numbers, 1).
    """
    found = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
    found = [t if t.layout == torch.strided else t.to_dense() for t in found]
    found = [_in_parts(t) if t.is_complex() else t for t in found]
    return [t for t in found if t.dim()] or found


def _in_parts(tensor: Tensor) -> Tensor:
    parts = torch.view_as_real(tensor.resolve_conj())
    return parts.flatten(1).unsqueeze(-1) if tensor.dim() else parts


def distance(dense: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The mean over tensors of a distance that is 0 for equal ones.

    Scores of classes (the last dimension, or dimension 1 of dense maps) are compared by the Kullback-Leibler divergence
    of their softmax, whatever else by the squared difference relative to the dense one's variance. Where networks give
    different numbers of results (boxes that a detector has found), each is compared with the nearest one.
    """
    parts = []
    for a, b in zip_longest(dense, other):
        if a is None or b is None:
            parts.append(torch.ones(()))
            continue
        a, b = a.float(), b.float()
        parts.append(apart_by(a, b) if a.shape == b.shape and a.numel() else _to_nearest(a, b))
    return torch.stack(parts).mean() if parts else torch.zeros(())


def apart_by(dense: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """`distance` of two tensors of one shape. temperature: of the softmax; the divergence then counts by its square.

    Classes that the dense network excludes (scores of minus infinity) count nothing, and so does whatever else of it is
    infinite. A single number is compared relative to itself, as it has no variance.
    """
    dim = classes_of(dense) if dense.dim() >= 2 else None
    if dim is not None:
        p, q = ((scores / temperature).log_softmax(dim) for scores in (dense, other))
        gap = (p - q).masked_fill(p == -torch.inf, 0)
        return temperature**2 * (p.exp() * gap).sum(dim).mean()
    infinite = dense.isinf()
    if infinite.any() and not infinite.all():
        dense, other = dense[~infinite], other[~infinite]
    spread = dense.var(unbiased=False) if dense.numel() > 1 else dense.square().mean()
    return (dense - other).square().mean() / spread.clamp_min(1e-12)


def _to_nearest(dense: Tensor, other: Tensor) -> Tensor:
    """The mean squared distance of each row from the nearest one of the other tensor, relative to the dense rows' mean
    square: 1 where one has no rows, 0 where neither has. Of many rows some are compared."""
    if not dense.numel() or not other.numel():
        return dense.new_tensor(float(dense.numel() != other.numel()))
    rows = dense.dim() > 1 and dense.shape[1:] == other.shape[1:]
    first, second = (_thinned(t.flatten(1) if rows else t.reshape(-1, 1)) for t in (dense, other))
    apart = torch.cdist(first, second).square()
    both = (apart.amin(1).mean() + apart.amin(0).mean()) / 2
    return both / first.square().sum(1).mean().clamp_min(1e-12)


def _thinned(rows: Tensor) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).long().to(rows.device)]


def classes_of(scores: Tensor) -> int | None:
    """The dimension of `scores` that looks like classes: the last, of 4 and more dimensions the second.

    None where there is a single one, and for values that all lie between 0 and 1: those have been through a softmax or
    a sigmoid, and another softmax would hide most of what differs.
    """
    if scores.numel() and float(scores.detach().min()) >= 0 and float(scores.detach().max()) <= 1:
        return None
    dim = 1 if scores.dim() >= 4 else scores.dim() - 1
    return dim if scores.shape[dim] > 1 else None


@torch.no_grad()
def outputs_of(network: nn.Module, batches: Sequence[Batch]) -> list[list[Tensor]]:
    """The output tensors of each batch."""
    with apart(network) as running:
        return [tensors_out(batch.run(running)) for batch in batches]


@torch.no_grad()
def divergence(network: nn.Module, batches: Sequence[Batch], dense: Sequence[Sequence[Tensor]]) -> float:
    """The mean distance of a network's outputs from `dense` ones (of `outputs_of`), weighted by samples."""
    total, count = 0.0, 0
    with apart(network) as running:
        for batch, expected in zip(batches, dense, strict=True):
            size = max(batch.size, 1)
            found = tensors_out(batch.run(running, "the network that is compared"))
            total += float(distance(expected, found)) * size
            count += size
    return total / max(count, 1)
