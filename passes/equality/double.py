"""Double precision whatever type a network names: rounding errors are then 1e-16, not 1e-8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from passes.graph.module_copies import evaluate_mode
from passes.ops.meta_shapes import LightMode
from passes.process.state import seed_all, state_kept
from passes.process.torch_private import OpOverload, no_dispatch_modes, schema_of
from passes.stream.inference import composite_attention

_EIGHT_BITS = (
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
)  # fmt: skip
_DOUBLE = {
    **dict.fromkeys([torch.float32, torch.float16, torch.bfloat16, *_EIGHT_BITS], torch.float64),
    **dict.fromkeys([torch.complex64, torch.complex32], torch.complex128),
}


def double(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in double precision; of integers and flags a plain copy."""
    data = tensor.detach()
    return data.to(_DOUBLE.get(data.dtype, data.dtype), copy=True)


def computable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy in single precision of one with eight bits: torch knows few operators of these types."""
    return tensor.float() if tensor.dtype in _EIGHT_BITS else tensor


class InDouble(LightMode):
    """A dispatch mode in which every type of lower precision is double: where it is named, and where it is the default.

    A state that starts from ``torch.zeros(n, 16)`` names no type; in single precision it could not enter a product
    with weights in double.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _DOUBLE:
            kwargs = {**kwargs, "dtype": _DOUBLE[kwargs["dtype"]]}
        if func in _FILLED and kwargs.get("dtype") is None and isinstance(args[-1], float):
            kwargs = {**kwargs, "dtype": torch.float64}  # the least double is no number of the default type
        if func in _CONVERTING and args[1] in _DOUBLE:
            args = (args[0], _DOUBLE[args[1]], *args[2:])
        known = _IN_DOUBLE.get(func) if args and getattr(args[0], "dtype", None) is torch.float64 else None
        result = (known or func)(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype in _DOUBLE and (_makes(func) or _of_integers(args)):
            with no_dispatch_modes():  # no call of the network: none may count it
                return result.to(_DOUBLE[result.dtype])
        return result


def _of_integers(args: Sequence[object]) -> bool:
    """Whether no operand has a type of lower precision: what integers are divided into has the default type."""
    given = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return bool(given) and not any(tensor.dtype in _DOUBLE for tensor in given)


_FILLED = frozenset({torch.ops.aten.full.default, torch.ops.aten.scalar_tensor.default})
_CONVERTING = frozenset({torch.ops.prims.convert_element_type.default})


def _grouped(
    rows: torch.Tensor, matrices: torch.Tensor, places: torch.Tensor | None = None, bias: torch.Tensor | None = None,
    out_dtype: object = None,
) -> torch.Tensor:  # fmt: skip
    """``torch._grouped_mm`` of rows in order of their experts: one by one; rows behind the last place are zero."""
    if rows.dim() != 2 or matrices.dim() != 3 or places is None:
        raise NotImplementedError("grouped products in double precision are known of sorted rows by one matrix each")
    with no_dispatch_modes():  # one call of the network, and no more
        ends = places.tolist()
        parts = [rows[start:end] @ one for start, end, one in zip([0, *ends], ends, matrices, strict=False)]
        result = torch.zeros(rows.shape[0], matrices.shape[2], dtype=torch.float64, device=rows.device)
        result[: sum(part.shape[0] for part in parts)] = torch.cat(parts)
        return result if bias is None else result + bias


# What knows no double precision on some device.
_IN_DOUBLE = {torch.ops.aten._grouped_mm.default: _grouped}


@cache
def _makes(func: OpOverload) -> bool:
    """Whether an operator makes a tensor of no other: by its size, or of numbers that stand in the program."""
    if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default):
        return True
    return not any("Tensor" in str(argument.type) for argument in schema_of(func).arguments)


@contextmanager
def in_double(root: torch.nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, `root` is in evaluation mode, nothing is recorded for gradients, and random numbers are those of `seed`.

    Attention takes no fused path, which a dispatch mode could not see into.
    """
    with state_kept(), torch.no_grad(), composite_attention(), InDouble():
        seed_all(seed)
        evaluate_mode(root)
        yield
