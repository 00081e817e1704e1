"""Batches as users have them: inputs alone or with labels, as the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from io import IOBase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes.arguments import read_from
from passes.errors import PassError
from passes.nested_values import holds_images, tree_leaves_only
from passes.process.source_lines import said
from passes.process.torch_private import pytree

LABELS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Batch:
    """One batch: the arguments of a call of the network, and its labels where there are some.

    held: whether `observe` holds it out of its sums; None where that is still to be decided.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None
    held: bool | None = None

    def call(self, network: nn.Module) -> Any:
        """What the network gives for copies of these tensors: programs write into their inputs, and batches are read
        again."""
        own = self.copied()
        return network(*own.args, **own.kwargs)

    def run(self, network: nn.Module, name: str = "") -> Any:
        """`call`, with an error of the network in words. name: of a network made of a dense one, which ran on this
        batch before: then the batch is not what is wrong. Raises PassError."""
        try:
            return self.call(network)
        except PassError:
            raise
        except Exception as error:  # the user's own code, on inputs that it may not take
            who, also = (name, ", as the dense one does") if name else ("batches: the network", "")
            raise PassError(f"{who} does not run on one of {self._in_words()}{also}: {said(error)}") from error

    def _in_words(self) -> str:
        """The types and shapes of its tensors, the first few."""
        tensors = tree_leaves_only(Tensor, (self.args, dict(self.kwargs)))
        words = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors[:4]]
        return ", ".join(words + ["..."] * (len(tensors) > 4)) or "no tensor"

    @property
    def size(self) -> int:
        """How many samples: the length that the first dimensions of all inputs share; 0 where they share none.

        A list may hold something of each sample instead (the boxes of each image, say, or the images themselves).
        """
        inputs = (self.args, dict(self.kwargs))
        outside = tree_leaves_only(Tensor, inputs, lambda value: isinstance(value, list))
        lengths = {len(images) for images in tree_leaves_only(list, inputs, holds_images)}
        tensors = outside if outside or lengths else tree_leaves_only(Tensor, inputs)
        sizes = lengths | {int(t.shape[0]) for t in tensors if t.dim()}
        if len(sizes) != 1 or not all(t.dim() for t in tensors):
            return 0
        size = sizes.pop()
        rest = tree_leaves_only(Tensor, inputs, partial(_of_each, size))
        return size if all(t.dim() and t.shape[0] == size for t in rest) else 0

    def copied(self) -> Batch:
        """The same inputs in tensors of their own; the labels are shared."""
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (self.args, dict(self.kwargs)))
        return Batch(args, kwargs, self.labels, self.held)

    def part(self, start: int, stop: int) -> Batch:
        """Samples ``start:stop`` of it."""
        is_leaf = partial(_of_each, self.size)

        def cut(leaf: Any) -> Any:
            return leaf[start:stop] if isinstance(leaf, Tensor | list) else leaf

        args, kwargs, labels = pytree.tree_map(cut, (self.args, dict(self.kwargs), self.labels), is_leaf=is_leaf)
        return Batch(args, kwargs, labels, self.held)


def _of_each(size: int, value: object) -> bool:
    """Whether a value is a list with tensors for each of `size` samples, and no list of tensors of all samples."""
    if not isinstance(value, list) or len(value) != size:
        return False
    tensors = tree_leaves_only(Tensor, value)
    return holds_images(value) or any(not t.dim() or t.shape[0] != size for t in tensors)


def batches_of(network: nn.Module, batches: object, inputs: int | None = None) -> Iterator[Batch]:
    """Each item of `batches` as a `Batch` on the network's device.

    An item is a tensor (the only input); a mapping of keyword arguments, in which what forward does not take is left
    out, and "label(s)" or "target(s)" are the labels, whether or not it takes them; a tuple or list of positional
    inputs, with labels behind them where it has one element more than the network takes (`inputs`: how many, where the
    example says). Arrays of numpy become tensors; items without any sample are passed over.

    Raises PassError for an item that does not fit.
    """
    if isinstance(batches, (Tensor, Mapping)):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, IOBase, nn.Module)) or _no_rows(batches):
        raise PassError(f"batches: got a {type(batches).__name__}; pass a list of batches, a DataLoader or a tensor")
    signature = inspect.signature(network.forward)
    device = next((t.device for t in [*network.parameters(), *network.buffers()]), torch.device("cpu"))
    for number, item in enumerate(read_from(batches, "batches", PassError)):
        if any(isinstance(part, Tensor) and part.is_meta for part in pytree.tree_leaves(item)):
            raise PassError(f"batch {number}: a tensor on the meta device has no values; pass one that has")
        made = item if isinstance(item, Batch) else _batch(signature, item, inputs, number)
        move = partial(_moved, device=device)
        args, kwargs, labels = pytree.tree_map(move, (made.args, dict(made.kwargs), made.labels))
        tensors = tree_leaves_only(Tensor, (args, kwargs))
        if not tensors or any(not tensor.dim() or len(tensor) for tensor in tensors):
            yield Batch(args, kwargs, labels, made.held)


def _no_rows(batches: object) -> bool:
    """Whether it is an array of numpy that is a single number."""
    return getattr(batches, "ndim", None) == 0


def _moved(leaf: Any, device: torch.device) -> Any:
    """A tensor or array, or a container of tensors that moves them itself (a packed sequence, a tokenizer's result).

    One that inference mode made is copied: no gradient could go through it.
    """
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(leaf)
    if isinstance(leaf, Tensor) and leaf.is_inference():
        leaf = leaf.clone()
    return leaf.to(device) if isinstance(leaf, Tensor) or callable(getattr(leaf, "to", None)) else leaf


def _batch(signature: inspect.Signature, item: object, inputs: int | None, number: int) -> Batch:
    parameters = signature.parameters.values()
    open_ended = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if isinstance(item, Mapping):
        labels = next((item[k] for k in LABELS if k in item), None)
        # A wrapper passes everything on; what has names of its own takes no other labels.
        left = () if not open_ended else item if not positional else [k for k in item if k not in LABELS]
        taken = {k: v for k, v in item.items() if k in signature.parameters or k in left}
        if not taken:
            raise PassError(
                f"batch {number}: none of its keys {sorted(map(str, item))} is an input of the network, which takes "
                f"{sorted(signature.parameters)}"
            )
        return Batch((), taken, labels)
    if item is None:
        raise PassError(f"batch {number}: it is None; pass a tensor, a tuple of inputs, or a dict by name")
    if isinstance(item, Tensor) or not isinstance(item, (tuple, list)):
        return Batch((item,))
    needed = inputs if inputs is not None else sum(p.default is p.empty for p in positional)
    if len(item) == needed + 1 and not isinstance(item[0], Mapping):
        return Batch(tuple(item[:-1]), {}, item[-1])
    if len(item) == 2 and isinstance(item[0], Mapping):
        return replace(_batch(signature, item[0], inputs, number), labels=item[1])
    if (
        len(item) == 2
        and isinstance(item[0], (tuple, list))
        and (len(item[0]) == needed or (not needed and isinstance(item[0], tuple)))
    ):
        return Batch(tuple(item[0]), {}, item[1])
    if not needed and len(item) > 1 and len(positional) > 1:
        raise PassError(
            f"batch {number}: it holds {len(item)} values by position, and every input of the network may be left out "
            f"({', '.join(p.name for p in positional[:3])}, ...); pass a dict by name, or (dict, labels)"
        )
    if len(item) < needed or (len(item) > len(positional) and not open_ended):
        raise PassError(
            f"batch {number}: it holds {len(item)} values, and the network takes {needed} "
            "(with labels behind them, one more); pass a tensor, a tuple of inputs, or a dict by name"
        )
    return Batch(tuple(item))
