"""What a caller hands in, checked where it enters: an error that says where, what was got and what is expected."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from passes.errors import ArgumentError, PassError
from passes.nested_values import tree_leaves_only
from passes.process.source_lines import said
from passes.process.torch_private import FakeTensor, buffers_of, parameters_of

_WITH_VALUES = frozenset({torch.Tensor, nn.Parameter, type(None)})
T = TypeVar("T")
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


def no_fake_tensors(example_inputs: object, where: str, error: type[Exception] = PassError) -> None:
    """Raise where a tensor among example inputs is one of a FakeTensorMode, from which nothing can be drawn."""
    if tree_leaves_only(FakeTensor, example_inputs):
        raise error(
            f"{where}: example_inputs holds a fake tensor, which has no values; pass one that torch.zeros makes"
        )


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


def flag(value: object, where: str, error: type[Exception] = ArgumentError) -> bool:
    """`value` as it is. Raises unless it is True or False: an array or an object of one's own may not say which."""
    is_a(value, bool, where, "True or False", error)
    return bool(value)


def choice(value: object, known: Sequence[str], where: str, error: type[Exception] = ArgumentError) -> str:
    """`value` as it is. Raises unless it is one of these texts."""
    if not isinstance(value, str) or value not in known:
        raise error(f"{where}: got {got(value)}; expected one of {', '.join(map(repr, known))}")
    return value


def read_from(items: Iterable[T], where: str, error: type[Exception] = ArgumentError) -> Iterator[T]:
    """The items of somebody else's iterable; what it raises on the way is reported with its number and line."""
    number = 0
    try:
        for item in items:
            yield item
            number += 1
    except Exception as raised:
        if type(raised).__module__.partition(".")[0] in ("passes", "fxprune"):
            raise  # it says itself what is wrong
        raise error(f"{where}: reading number {number} of {got(items)} failed: {said(raised)}") from raised


def tell(progress: Callable[[T], object] | None, value: T, where: str) -> None:
    """Call the caller's progress function, if there is one; what it raises is reported with its line."""
    if progress is None:
        return
    try:
        progress(value)
    except Exception as raised:
        raise ArgumentError(f"{where}: progress failed on {got(value)}: {said(raised)}") from raised


def listed(value: object, where: str, expected: str, error: type[Exception] = ArgumentError) -> list[Any]:
    """An iterable of the caller's as a list. Raises for text, mappings, what cannot be iterated, and what it raises."""
    if isinstance(value, str | bytes | Mapping | nn.Module) or not isinstance(value, Iterable):
        raise error(f"{where}: got {got(value)}; expected {expected}")
    return list(read_from(value, where, error))


def file_name(
    path: object, where: str, expected: str = "the name of a file", error: type[Exception] = ArgumentError
) -> Path:
    """`user_path` of a name. Raises for what is no name, or none that the file system takes."""
    is_a(path, str | os.PathLike, where, expected, error)
    found = user_path(path)  # type: ignore[arg-type]
    if not is_file_name(found):
        raise error(f"{where}: got {got(str(path))}, which the file system does not take; expected {expected}")
    return found


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path of the user's: `~` at its beginning is the home folder, as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the home of a user that there is not: a name like any other
        return Path(path)


def is_file_name(path: str | os.PathLike[str]) -> bool:
    """Whether the file system takes a name: without zero bytes, and not too long."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True  # such a file may be made, or the disk says why not
    except (OSError, ValueError):
        return False
    return True


def got(value: object) -> str:
    """What a value is, in a few words: "None", "the text 'net'", "a Tensor of shape (2, 3)", "the class Net"."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, Integral | Real):
        return quoted(value)
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}, {value.dtype} on {value.device}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple | list | set | frozenset | Mapping) and not value:
        return f"an empty {type(value).__name__}"
    if isinstance(value, tuple | list | set | frozenset):
        kinds = ", ".join(sorted({type(item).__name__ for item in value}))
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return _article(value)


def refused(error: Exception, where: str, expected: str) -> PassError:
    """The text for what code of the caller raised on an argument."""
    said = (str(error).strip().splitlines() or ["without words"])[0][:500]
    return ArgumentError(f"{where}: {type(error).__name__}: {said}; expected {expected}")


def quoted(value: object) -> str:
    """A value as an error shows it: its repr, cut where it is long; its kind where that says nothing or fails.

    >>> quoted("net"), quoted(object()), len(quoted("n" * 5000))
    ("'net'", 'an object', 80)
    """
    try:
        text = repr(value)
    except Exception:  # an integer of more digits than Python writes, a list that holds itself, a class of the user's
        return f"{_article(value)} that cannot be shown"
    if re.search(r" at 0x[0-9a-f]+>", text):
        return _article(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
