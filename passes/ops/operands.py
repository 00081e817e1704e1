"""How each operator that sums over a weight's axis reads its two operands: as rows and as a matrix.

Every such call is brought to one form. The weight is a matrix for each of `groups` independent groups,
``(groups, rows, columns)``; the data are ``(groups, n, columns)``, n readings of one output position each; the output
is ``data @ weight.mT``. For a convolution the columns are the channels of one group times *all* taps (im2col).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from passes.ops.call import signature
from passes.ops.table import traits_of
from passes.process.torch_private import OpOverload

IsWeight = Callable[[Tensor], bool]
Reader = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Form:
    """How a weight operand is laid out as ``(groups, rows, columns)``.

    kind: "rows" (rows, columns), "columns" (columns, rows), each with an optional leading batch of groups;
    "convolution" (groups * rows, columns...), "transposed" (groups * columns, rows, taps...). groups: of a convolution.
    """

    kind: str
    groups: int = 1

    def matrix(self, operand: Tensor) -> Tensor:
        """The operand as (groups, rows, columns). Works for values, for masks and for indices alike."""
        if self.kind == "rows":
            return operand if operand.dim() == 3 else operand[None]
        if self.kind == "columns":
            return operand.mT if operand.dim() == 3 else operand.T[None]
        if self.kind == "vector":
            return operand[None, None]
        if self.kind == "convolution":
            return operand.reshape(self.groups, operand.shape[0] // self.groups, -1)
        taps = list(range(2, operand.dim()))
        grouped = operand.flip(taps).reshape(self.groups, -1, *operand.shape[1:]).transpose(1, 2)
        return grouped.reshape(*grouped.shape[:2], -1)


@dataclass(frozen=True)
class Contraction:
    """One call: which operand is the weight, which the data, and what is added.

    read(limit, generator): at most `limit` rows of the data as (groups, n, columns), drawn at random where there are
    more. count: how many there are.
    """

    weight: Tensor
    data: Tensor
    bias: Tensor | None
    form: Form
    count: int
    read: Reader
    reading: tuple[Any, ...]


def contraction_of(
    func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], is_weight: IsWeight
) -> Contraction | None:
    """What `func` contracts, where its rule says how and just one operand is a weight; else None."""
    reads = traits_of(func).reads
    return None if reads is None else reads(func, args, kwargs, is_weight)


def convolution(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], is_weight: IsWeight
) -> Contraction | None:
    call = {**dict(zip(signature(func)[0], args, strict=False)), **kwargs}
    x, weight = call["input"], call["weight"]
    if not is_weight(weight) or is_weight(x):
        return None
    rank, groups, transposed = weight.dim() - 2, int(call["groups"]), bool(call["transposed"])
    stride, padding, dilation, extra = (
        _each(call[key], rank) for key in ("stride", "padding", "dilation", "output_padding")
    )
    reading = ("convolution", tuple(weight.shape[2:]), stride, padding, dilation, extra, transposed, groups)

    def places() -> Tensor:
        taps, data, step, pad = tuple(weight.shape[2:]), x, stride, [(p, p) for p in padding]
        if transposed:
            data, step = _spread(x, stride), (1,) * rank
            pad = [
                (d * (k - 1) - p, d * (k - 1) - p + e)
                for d, k, p, e in zip(dilation, taps, padding, extra, strict=True)
            ]
        return _windows(data, taps, step, pad, dilation)

    def read(limit: int, generator: torch.Generator) -> Tensor:
        windows = places()  # (n, channels, *out, *taps), a view
        out = windows.shape[2 : 2 + rank]
        total = windows.shape[0] * prod(out)
        chosen = _drawn(total, limit, generator, windows.device)
        index: list[Any] = [None] * (2 + rank)
        rest = chosen
        for dim in reversed(range(rank)):
            index[2 + dim], rest = rest % out[dim], rest // out[dim]
        index[0], index[1] = rest, slice(None)
        rows = windows[tuple([index[0], slice(None), *index[2:]])]  # (m, channels, *taps)
        # with a slice between them the indexed dimensions come first
        rows = rows.reshape(len(chosen), groups, -1)
        return rows.transpose(0, 1)

    size = list(x.shape[2:])
    out_size = []
    for dim in range(rank):
        reach = dilation[dim] * (weight.shape[2 + dim] - 1)
        if transposed:
            out_size.append((size[dim] - 1) * stride[dim] - 2 * padding[dim] + reach + extra[dim] + 1)
        else:
            out_size.append((size[dim] + 2 * padding[dim] - reach - 1) // stride[dim] + 1)
    batch = x.shape[0] if x.dim() == rank + 2 else 1
    if x.dim() == rank + 1:
        x = x[None]
    form = Form("transposed" if transposed else "convolution", groups)
    return Contraction(weight, x, call.get("bias"), form, batch * prod(out_size), read, reading)


def _product(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], is_weight: IsWeight, bias_first: bool
) -> Contraction | None:
    bias = args[0] if bias_first else None
    if bias_first and (kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1):
        return None
    left, right = args[bias_first], args[bias_first + 1]
    if is_weight(left) == is_weight(right):
        return None
    weight, data = (right, left) if is_weight(right) else (left, right)
    kind = "columns" if is_weight(right) else "rows"
    if right.dim() == 1 and weight is right:
        kind = "vector"
    rows = data if is_weight(right) else data.mT if data.dim() > 1 else data[None]
    if rows.dim() == 2 and weight.dim() <= 2:
        rows = rows[None]
    if bias is not None and weight is left:
        bias = None  # added along the other axis
    return Contraction(weight, data, bias, Form(kind), rows.shape[1], _rows_of(rows), (kind,))


def linear(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], is_weight: IsWeight) -> Contraction | None:
    data, weight = args[0], args[1]
    if not is_weight(weight) or is_weight(data):
        return None
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    rows = data.reshape(1, -1, data.shape[-1])
    return Contraction(weight, data, bias, Form("rows"), rows.shape[1], _rows_of(rows), ("columns",))


def _rows_of(rows: Tensor) -> Reader:
    def read(limit: int, generator: torch.Generator) -> Tensor:
        if rows.shape[1] <= limit:
            return rows
        return rows[:, _drawn(rows.shape[1], limit, generator, rows.device)]

    return read


def _drawn(total: int, limit: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """All positions below `total`, or `limit` of them drawn at random (with replacement)."""
    if total <= limit:
        return torch.arange(total, device=device)
    return torch.randint(total, (limit,), generator=generator).to(device)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    listed = [int(v) for v in value]
    return tuple(listed * rank if len(listed) == 1 else listed)


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """`x` with stride - 1 zeros between neighbours: a transposed convolution is a plain one of it."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return spread


def _windows(
    x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], padding: list[tuple[int, int]], dilation: tuple[int, ...]
) -> Tensor:
    """A view (n, channels, *out, *taps) of what each output position of a convolution reads."""
    flat = [p for pair in reversed(padding) for p in pair]
    windows = torch.nn.functional.pad(x, flat) if any(flat) else x
    for dim, (k, s, d) in enumerate(zip(taps, stride, dilation, strict=True)):
        windows = windows.unfold(2 + dim, d * (k - 1) + 1, s)[..., ::d]
    return windows


product, added_product = partial(_product, bias_first=False), partial(_product, bias_first=True)
