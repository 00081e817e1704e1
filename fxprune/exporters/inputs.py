"""Example inputs: their one form, the batch dimension in them, and the same inputs at another batch size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import ExportError
from passes.process.torch_private import pytree
from passes.statistics.observing import evaluating as in_eval_mode


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, and which dimension of their tensors is the batch.

    A tensor takes part in the batch where its size in `batch_dim` is `batch_size`; others are constants of a kind
    (a mask, a table). batch_size: that of the first tensor with such a dimension, None where there is none.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]
    batch_dim: int = 0

    @property
    def batch_size(self) -> int | None:
        for leaf in pytree.tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, torch.Tensor) and self._dim(leaf) is not None:
                return leaf.shape[self.batch_dim]
        return None

    def map(self, function: Callable[[object], object]) -> Inputs:
        """The same inputs with `function` applied to every leaf."""
        args, kwargs = pytree.tree_map(function, (self.args, self.kwargs))
        return Inputs(args, kwargs, self.batch_dim)

    def resized(self, size: int) -> Inputs:
        """The same inputs at batch size `size`: rows are taken in turn, and scaled apart where they are floats."""
        batch, generator = self.batch_size, torch.Generator().manual_seed(size)

        def resize(leaf: Any) -> Any:
            if not self._batched(leaf, batch):
                return leaf
            rows = torch.arange(size, device=leaf.device) % leaf.shape[self.batch_dim]
            taken = leaf.index_select(self.batch_dim, rows)
            if not leaf.is_floating_point():
                return taken
            # Towards zero only, so that a positive input stays positive.
            factor = 1 - 0.5 * torch.rand(taken.shape, generator=generator)
            return taken * factor.to(taken.device, taken.dtype)

        return self.map(resize)

    def dynamic_shapes(self, module: nn.Module, dim: object) -> dict[str, object]:
        """The `dynamic_shapes` of torch.export, by the names of the parameters of `module.forward`."""
        batch = self.batch_size
        named = inspect.signature(module.forward).bind(*self.args, **self.kwargs).arguments
        return pytree.tree_map(lambda leaf: {self._dim(leaf): dim} if self._batched(leaf, batch) else None, dict(named))

    def _dim(self, leaf: torch.Tensor) -> int | None:
        dim = self.batch_dim if self.batch_dim >= 0 else self.batch_dim + leaf.dim()
        return dim if 0 <= dim < leaf.dim() else None

    def _batched(self, leaf: object, batch: int | None) -> bool:
        return (
            isinstance(leaf, torch.Tensor)
            and batch is not None
            and self._dim(leaf) is not None
            and leaf.shape[self.batch_dim] == batch
        )


def inputs_of(example_inputs: object, module: nn.Module, batch_dim: int = 0) -> Inputs:
    """Read a tensor, a tuple or list of arguments, or a dict of keyword arguments; tensors go to the module's device.

    Raises ExportError where `module.forward` does not take them.
    """
    args: tuple[object, ...] = ()
    kwargs: dict[str, object] = {}
    if isinstance(example_inputs, torch.Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        kwargs = {str(name): value for name, value in example_inputs.items()}
    elif isinstance(example_inputs, tuple | list):
        args = tuple(example_inputs)
    else:
        raise ExportError(
            f"example inputs: got {type(example_inputs).__name__}; pass a tensor, a tuple of positional arguments or a "
            "dict of keyword arguments"
        )
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:  # a scripted module has no signature
        raise ExportError(f"example inputs do not fit {type(module).__name__}.forward: {error}") from error
    args, kwargs = _without_gaps(bound, args, kwargs)
    if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in pytree.tree_leaves((args, kwargs))):
        raise ExportError("example inputs: a tensor has no values (device meta); the written network is run on them")
    device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)
    by_name = _keyword_names(module)
    if by_name is not None:
        args = tuple(value for name, value in bound.arguments.items() if name not in by_name)
        kwargs = {name: value for name, value in bound.arguments.items() if name in by_name}
    found = Inputs(args, kwargs, batch_dim)
    if device is None or device.type == "meta":
        return found
    return found.map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf)


def _without_gaps(
    bound: inspect.BoundArguments, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The same call with the defaults of arguments that it skips before its last one.

    torch.export (2.13) gives keywords to a graph by position: `f(x, extra=None, flag=True)` called with x and flag
    would be exported with flag in the place of extra.
    """
    parameters = bound.signature.parameters
    ordinary = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    given = [place for place, name in enumerate(ordinary) if name in bound.arguments]
    named = ordinary[len(args) : given[-1] + 1] if given else []
    filled = {name: kwargs.get(name, parameters[name].default) for name in named}
    return args, {**filled, **kwargs}


def _keyword_names(module: nn.Module) -> frozenset[str] | None:
    """The inputs that a graph of torch.export takes by name, and no other way; None for any other module."""
    info = getattr(getattr(getattr(module, "graph", None), "_codegen", None), "pytree_info", None)
    spec = getattr(info, "in_spec", None)
    if spec is None or spec.num_children != 2 or spec.child(1).type is not dict:
        return None
    return frozenset(spec.child(1).context)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run the block with every submodule in eval mode and without gradients, then give each its own mode back."""
    with in_eval_mode(module), torch.no_grad():
        yield


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Run the module on copies of the inputs, since a forward may write into them."""
    fresh = inputs.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf)
    return module(*fresh.args, **fresh.kwargs)
