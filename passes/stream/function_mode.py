"""Calls that hide from a dispatch mode what it needs to know: devices, lists used as indices, fused attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from passes.graph.emitted_functions import EMITTED, emit_attention
from passes.ops.routing import one_hot
from passes.process.torch_private import no_dispatch_modes, no_torch_dispatch, no_torch_function
from passes.stream.conditions import SizeConditions
from passes.stream.inference import tensors_in
from passes.stream.module_stream import ModuleInference

aten = torch.ops.aten


class Functions(TorchFunctionMode):
    """Answers those calls of torch's functions by what `mode` knows.

    conditions: they say what the program gets of sizes. A second function mode would take as long again at every call.
    """

    conditions: SizeConditions | None = None

    def __init__(self, mode: ModuleInference) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, func, types, args=(), kwargs=None):
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self.mode, func, args, kwargs or {})
        conditions = self.conditions
        if conditions is not None and func in conditions.functions:
            return conditions.seen(func, func(*args, **(kwargs or {})))
        result = _emitted(self.mode, func, args, kwargs or {})
        if result is not NotImplemented:
            return result
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if self.mode.real or "device" not in str(error):
                raise
            return self.mode.all_on_meta(func, args, kwargs or {}, error)


def _emitted(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, object]) -> object:
    """What a function gives whose calls are known beforehand, or NotImplemented."""
    emit, entry = mode.stack.emit, EMITTED.get(func)
    if emit is None or entry is None:
        return NotImplemented
    with no_torch_dispatch():
        plain = all([tensor.is_meta for tensor in tensors_in(*args)])
        return entry(args, kwargs, emit) if plain else NotImplemented


def _device(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, object]) -> object:
    return mode.device if args[0].is_meta and not mode.real else func(*args)


def _on_kind(kind: str) -> Callable[..., object]:
    def asked(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, object]) -> Any:
        with no_torch_function():
            return mode.device.type == kind if args[0].is_meta and not mode.real else func(*args)

    return asked


def _item(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, object]) -> object:
    """``x[..., [2, 0, 1]]``: as a tensor the list keeps its numbers."""
    key = args[1]
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, list) for part in parts):
        made = tuple(_as_index(part) if isinstance(part, list) else part for part in parts)
        args = (args[0], made if isinstance(key, tuple) else made[0], *args[2:])
    result = _emitted(mode, func, args, kwargs)
    return func(*args, **kwargs) if result is NotImplemented else result


def _new_tensor(mode: ModuleInference, func: Any, args: tuple, kwargs: dict[str, object]) -> object:
    """``x.new_tensor(number)``: a constant of the program, of the type of `x`."""
    if mode.real or not args[0].is_meta or isinstance(args[1], torch.Tensor):
        return func(*args, **kwargs)
    return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": mode.device, **kwargs})


def _as_index(part: list[object]) -> object:
    flat = all(isinstance(number, (bool, int)) for number in part)
    if not flat or not part:
        return part
    with no_dispatch_modes():  # the program makes no tensor of it
        return torch.tensor(part, device="cpu")


def _attention(mode: ModuleInference, func: object, args: tuple, kwargs: dict[str, object]) -> object:
    """Attention by the products that it is made of: a fused kernel would hide them."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    scale, grouped = given.pop("scale", None), given.pop("enable_gqa", False)
    mask = given.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:  # torch does so before it chooses how to compute
        given["attn_mask"] = torch.zeros_like(mask, dtype=given["query"].dtype).masked_fill(~mask, -math.inf)
    mode.attentions += 1
    before, mode.function = mode.function, f"scaled_dot_product_attention{mode.attentions}"
    mode.one_kernel = True
    try:
        emit = mode.stack.emit
        if emit is not None and given.keys() >= {"query", "key", "value"} and _is_plain_attention(given, grouped):
            with no_torch_dispatch():
                result = emit_attention(given["query"], given["key"], given["value"], scale, emit)
            if result is not NotImplemented:
                return result
        return aten._scaled_dot_product_attention_math(
            given["query"], given["key"], given["value"], given.get("attn_mask"), given.get("dropout_p", 0.0),
            given.get("is_causal", False), scale=scale, enable_gqa=grouped,
        )[0]  # fmt: skip
    finally:
        mode.function, mode.one_kernel = before, False


def _is_plain_attention(given: dict[str, object], grouped: object) -> bool:
    """Whether nothing is masked, dropped or shared between heads."""
    return not (given.get("attn_mask") is not None or given.get("dropout_p") or given.get("is_causal") or grouped)


def _getter(name: str) -> object:
    return getattr(torch.Tensor, name).__get__


_SPECIAL: dict[object, Callable[..., object]] = {
    _getter("device"): _device,
    _getter("is_meta"): lambda mode, func, args, kwargs: False if not mode.real else func(*args),
    _getter("is_cuda"): _on_kind("cuda"),
    _getter("is_cpu"): _on_kind("cpu"),
    torch.Tensor.__getitem__: _item,
    torch.Tensor.new_tensor: _new_tensor,
    torch.nn.functional.one_hot: one_hot,
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
