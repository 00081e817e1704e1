"""Training in every process of torch.distributed: one network, gradients averaged, decisions that all make alike.

In a single process each of these functions leaves things as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fxprune.errors import InputError
from fxprune.io.tensors import named_tensors

BUCKET = 2**23  # numbers that are averaged in one message


def processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if processes() > 1 else 0


def begin_alike(network: nn.Module, where: str) -> None:
    """Give every process the tensors of the first. Raises InputError where the networks have other shapes."""
    if processes() == 1:
        return
    tensors = dict(named_tensors(network))
    mine = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, mine)
    for number, other in enumerate(found):
        if other != found[0]:
            name = next(n for n in {**found[0], **other} if found[0].get(n) != other.get(n))
            raise InputError(
                f"{where}: processes 0 and {number} hold different networks ({name}: {found[0].get(name)} and "
                f"{other.get(name)}); prune in one process and load in the others, or prune alike in all."
            )
    for tensor in tensors.values():
        distributed.broadcast(tensor.data, 0)


def in_step(batches: Iterable[object], device: torch.device, where: str) -> Iterator[Any]:
    """The batches of this process, as long as every process has one. Raises InputError where only some have."""
    count = 0
    for batch in batches:
        if _sum([1], device)[0] < processes():
            _uneven(count, where)
        yield batch
        count += 1
    if _sum([0], device)[0]:
        _uneven(count, where)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over all processes; a gradient that some have and some not counts as zero there."""
    if processes() == 1:
        return
    device = parameters[0].device
    used = _sum([int(p.grad is not None) for p in parameters], device)
    grads: list[Tensor] = []
    for parameter, times in zip(parameters, used, strict=True):
        if times and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            grads.append(parameter.grad)
    for bucket in _buckets(grads):
        _average(bucket)


def average_buffers(network: nn.Module) -> None:
    """Running statistics become their mean over all processes; counters and indices those of the first."""
    if processes() == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            _average([buffer])
        else:
            distributed.broadcast(buffer, 0)


def mean_of(value: float, device: torch.device) -> float:
    """The mean of a number over all processes."""
    return _sum([value], device)[0] / processes() if processes() > 1 else value


def _uneven(count: int, where: str) -> None:
    raise InputError(
        f"{where}: the processes have different numbers of batches (this one stops at {count}); use a "
        "DistributedSampler, or drop what is left over."
    )


def _sum(values: Sequence[float], device: torch.device) -> list[float]:
    if processes() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    distributed.all_reduce(summed)
    return summed.tolist()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        fits = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (fits and sum(t.numel() for t in bucket) + tensor.numel() <= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _average(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= processes()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))
