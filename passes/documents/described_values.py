"""Example inputs as data that JSON holds: shapes and types of tensors, plain values, in lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

Described = dict[str, Any]  # "tensor" and "dtype", "dict", "list", "tuple" or "value"


def described(value: object) -> Described:
    """Plain data, of which `example` makes a value again; what is no plain value is None."""
    if isinstance(value, torch.Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": {str(key): described(item) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [described(item) for item in value]}
    return {"value": value if isinstance(value, (int, float, str, bool, type(None))) else None}


def examples(items: Iterable[Described], device: str | torch.device = "cpu") -> tuple[Any, ...]:
    """A value for each of the items, as by `example`."""
    return tuple(example(item, device) for item in items)


def example(item: Described, device: str | torch.device = "cpu") -> Any:
    """Zeros of the shapes and types that `described` wrote down, and plain values as they were."""
    if "tensor" in item:
        return torch.zeros(item["tensor"], dtype=getattr(torch, item["dtype"]), device=device)
    if "dict" in item:
        return {name: example(value, device) for name, value in item["dict"].items()}
    if "list" in item:
        return [example(value, device) for value in item["list"]]
    if "tuple" in item:
        return tuple(example(value, device) for value in item["tuple"])
    return item["value"]
