"""Batches as users have them: inputs alone or with labels, as the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import IOBase
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import PassError
from passes.process.source_lines import said
from passes.process.torch_private import pytree


@dataclass(frozen=True)
class Batch:
    """One batch: the arguments of a call of the network, and its labels where there are some."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None

    def run(self, network: nn.Module) -> Any:
        """What the network gives for this batch."""
        try:
            return network(*self.args, **self.kwargs)
        except PassError:
            raise
        except Exception as error:  # the user's own code, on inputs that it may not take
            raise PassError(
                f"batches: the network does not run on one: {said(error)}; pass inputs like the example inputs"
            ) from error

    @property
    def size(self) -> int:
        """How many samples: the length that the first dimensions of all inputs share; 0 where they share none."""
        tensors = [t for t in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(t, Tensor)]
        sizes = {int(t.shape[0]) for t in tensors if t.dim()}
        return sizes.pop() if len(sizes) == 1 and all(t.dim() for t in tensors) else 0

    def part(self, start: int, stop: int) -> Batch:
        """Samples ``start:stop`` of it."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop]

        args, kwargs, labels = pytree.tree_map_only(Tensor, cut, (self.args, dict(self.kwargs), self.labels))
        return Batch(args, kwargs, labels)


def batches_of(network: nn.Module, batches: object, inputs: int | None = None) -> Iterator[Batch]:
    """Each item of `batches` as a `Batch` on the network's device.

    An item is a tensor (the only input); a dict of keyword arguments, in which what forward does not take is left out,
    and "label" or "labels" are the labels if it does not; a tuple or list of positional inputs, with labels behind them
    where it has one element more than the network takes (`inputs`: how many, where the example says).

    Raises PassError for an item that does not fit.
    """
    if isinstance(batches, (Tensor, Mapping)):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, IOBase, nn.Module)):
        raise PassError(f"batches: got a {type(batches).__name__}; pass a list of batches, a DataLoader or a tensor")
    signature = inspect.signature(network.forward)
    device = next((t.device for t in [*network.parameters(), *network.buffers()]), torch.device("cpu"))
    for number, item in enumerate(batches):
        if any(isinstance(part, Tensor) and part.is_meta for part in pytree.tree_leaves(item)):
            raise PassError(f"batch {number}: a tensor on the meta device has no values; pass one that has")
        made = item if isinstance(item, Batch) else _batch(signature, item, inputs, number)
        args, kwargs, labels = pytree.tree_map_only(
            Tensor, lambda t: t.to(device), (made.args, dict(made.kwargs), made.labels)
        )
        yield Batch(args, kwargs, labels)


def _batch(signature: inspect.Signature, item: object, inputs: int | None, number: int) -> Batch:
    parameters = signature.parameters.values()
    open_ended = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    if isinstance(item, Mapping):
        taken = {k: v for k, v in item.items() if open_ended or k in signature.parameters}
        if not taken:
            raise PassError(
                f"batch {number}: none of its keys {sorted(map(str, item))} is an input of the network, which takes "
                f"{sorted(signature.parameters)}"
            )
        labels = next((item[k] for k in ("labels", "label", "targets", "target") if k in item), None)
        return Batch((), taken, labels)
    if isinstance(item, Tensor) or not isinstance(item, (tuple, list)):
        return Batch((item,))
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = inputs if inputs is not None else sum(p.default is p.empty for p in positional)
    if len(item) == needed + 1 and not isinstance(item[0], Mapping):
        return Batch(tuple(item[:-1]), {}, item[-1])
    if len(item) == 2 and isinstance(item[0], Mapping):
        return replace(_batch(signature, item[0], inputs, number), labels=item[1])
    if len(item) == 2 and isinstance(item[0], (tuple, list)) and len(item[0]) == needed:
        return Batch(tuple(item[0]), {}, item[1])
    if len(item) < needed or (len(item) > len(positional) and not open_ended):
        raise PassError(
            f"batch {number}: it holds {len(item)} values, and the network takes {needed} "
            "(with labels behind them, one more); pass a tensor, a tuple of inputs, or a dict by name"
        )
    return Batch(tuple(item))
