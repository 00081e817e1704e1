"""Indices whose values the program itself states: integer buffers, literals and what is computed from them.

Analysis reads no weights. An order of channels is none: ``x[:, self.order]`` says which channel stands where as
plainly as a slice does, once the numbers of `order` are known. They are read where a call is made of such tensors
alone and is small; what random numbers or writes in place enter stays unknown.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from passes.nested_values import tree_leaves_only
from passes.ops.table import NumbersOf, traits_of
from passes.process.torch_private import OpOverload, pytree, schema_of

MOST = 1 << 14  # an index of more positions is a table of places, not an order of channels


def stated(tensor: torch.Tensor) -> torch.Tensor | None:
    """`tensor` itself where it can be an index of the program: integers or flags, few, and with memory."""
    small = not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= MOST
    return tensor.detach() if small and tensor.dim() and tensor.device.type not in ("meta",) else None


def computed(
    func: OpOverload,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    result: torch.Tensor,
    numbers_of: NumbersOf,
    output: int = 0,
) -> torch.Tensor | None:
    """The numbers of `result` (on meta), output number `output` of a call on tensors whose numbers are known, or None.

    numbers_of: what is known of a tensor argument.
    """
    if result.is_floating_point() or result.is_complex() or result.numel() > MOST or not result.dim():
        return None
    drawn = torch.Tag.nondeterministic_seeded in func.tags
    if schema_of(func).is_mutable or drawn or traits_of(func).undetermined:
        return None
    operands = tree_leaves_only(torch.Tensor, (args, kwargs))
    known = {id(t): numbers_of(t) for t in operands}
    if any(numbers is None for numbers in known.values()):
        return None
    real = lambda leaf: known[id(leaf)] if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
    args, kwargs = pytree.tree_map(real, (args, kwargs))
    if kwargs.get("device") is not None or not operands:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    try:
        found = func(*args, **kwargs)
    except Exception:  # numbers are a gain, not a need: what torch cannot compute here stays unknown
        return None
    if isinstance(found, (tuple, list)):
        found = found[output]
    return found if isinstance(found, torch.Tensor) and found.shape == result.shape else None


def literal(node: fx.Node | None, tensor: torch.Tensor) -> torch.Tensor | None:
    """The list of ``x[:, [2, 0, 1]]``, where it is the node's only index: torch makes a tensor without values of it."""
    if node is None or node.target is not operator.getitem or tensor.dtype not in (torch.int64, torch.bool):
        return None
    items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    lists = [item for item in items if isinstance(item, list)]
    if len(lists) != 1 or any(isinstance(item, fx.Node) for item in items):
        return None
    if any(isinstance(number, (list, fx.Node)) for number in lists[0]):
        return None
    found = torch.tensor(list(lists[0]), dtype=tensor.dtype)
    return found if found.shape == tensor.shape else None


def as_positions(
    args: tuple[Any, ...], numbers_of: NumbersOf
) -> tuple[tuple[Any, ...], list[tuple[torch.Tensor, torch.Tensor]]]:
    """The arguments of an indexing call with flags that are known replaced by positions, whose number is then known.

    Returns the arguments, and the new tensors (on the device of the flags) with their numbers.
    """
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def position(index: object) -> Any:
        if not isinstance(index, torch.Tensor) or index.dtype != torch.bool or index.dim() != 1:
            return index
        numbers = numbers_of(index)
        if numbers is None:
            return index
        places = numbers.nonzero().flatten()
        made.append((places.to(index.device), places))
        return made[-1][0]

    return (args[0], [position(index) for index in args[1]], *args[2:]), made
