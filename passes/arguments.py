"""What a caller hands in, checked where it enters: an error that says where, what was got and what is expected."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from passes.errors import ArgumentError, PassError
from passes.process.torch_private import buffers_of, parameters_of

_WITH_VALUES = frozenset({torch.Tensor, nn.Parameter, type(None)})
Kind = type | UnionType | tuple[type, ...]


def is_a(value: object, kind: Kind, where: str, expected: str, error: type[Exception] = ArgumentError) -> None:
    """Raise unless `value` is an instance of `kind`; `expected` says what to pass.

    >>> is_a("3", int, "f: runs", "an integer")
    Traceback (most recent call last):
    passes.errors.ArgumentError: f: runs: got the text '3'; expected an integer
    """
    if not isinstance(value, kind):
        raise error(f"{where}: got {got(value)}; expected {expected}")


def has_weights(modules: Mapping[str, nn.Module], where: str, error: type[Exception] = PassError) -> None:
    """Raise where a lazy layer among these modules of a network, by path, has no weights yet."""
    for name, module in modules.items():
        for held in (parameters_of(module), buffers_of(module)):
            if _WITH_VALUES.issuperset(map(type, held.values())):
                continue
            if any(is_lazy(tensor) for tensor in held.values() if tensor is not None):
                what = f"{name or 'the model'} ({type(module).__name__})"
                raise error(f"{where}: {what} has no weights yet; call the model once first")


def integer(
    value: Any, where: str, least: int | None = None, below: int | None = None, error: type[Exception] = ArgumentError
) -> int:
    """`value` as an int. Raises unless it is a whole number of at least `least` and less than `below`."""
    bounds = [f"of at least {least}"] if least is not None else []
    bounds += [f"less than {below}"] if below is not None else []
    expected = " ".join(["an integer", " and ".join(bounds)]).strip()
    is_a(value, Integral, where, expected, error)
    if isinstance(value, bool) or (least is not None and value < least) or (below is not None and value >= below):
        raise error(f"{where}: got {got(value)}; expected {expected}")
    return int(value)


def number(
    value: Any, where: str, least: float | None = None, most: float | None = None,
    error: type[Exception] = ArgumentError,
) -> float:  # fmt: skip
    """`value` as a float. Raises unless it is a finite number of at least `least` and at most `most`."""
    bounds = [f"of at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    expected = " ".join(["a number", " and ".join(bounds)]).strip()
    is_a(value, Real, where, expected, error)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    wrong = isinstance(value, bool) or not math.isfinite(found)
    if wrong or (least is not None and found < least) or (most is not None and found > most):
        raise error(f"{where}: got {got(value)}; expected {expected}")
    return found


def is_file_name(path: str | os.PathLike[str]) -> bool:
    """Whether the file system takes a name: without zero bytes, and not too long."""
    try:
        Path(path).exists()
    except (OSError, ValueError):
        return False
    return True


def got(value: object) -> str:
    """What a value is, in a few words: "None", "the text 'net'", "a Tensor of shape (2, 3)", "the class Net"."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"the text {_short(value)}"
    if isinstance(value, Integral | Real):
        return _short(value)
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype} on {value.device}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple | list | set | frozenset | Mapping) and not value:
        return f"an empty {type(value).__name__}"
    if isinstance(value, tuple | list | set | frozenset):
        kinds = ", ".join(sorted({type(item).__name__ for item in value}))
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return f"{'an' if type(value).__name__[:1] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def refused(error: Exception, where: str, expected: str) -> PassError:
    """The words for what somebody else's code raised on an argument."""
    said = (str(error).strip().splitlines() or ["without words"])[0][:500]
    return ArgumentError(f"{where}: {type(error).__name__}: {said}; expected {expected}")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
