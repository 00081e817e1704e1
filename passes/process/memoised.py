"""Functions of a program that remember their results (`functools.lru_cache`), emptied around each of its runs.

What one run has left there the next would not compute: it makes other calls, and may be handed tensors of another
device or size. What the memory of a function held before is computed again when it is asked for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

_MEMOISED: Any = type(functools.lru_cache(lambda: None))


def memoised(kinds: Iterable[type]) -> list[Any]:
    """The functions with a memory among the methods of these classes, and those of the files where they stand."""
    bases = users_classes(kinds)
    files = dict.fromkeys(base.__module__ for base in bases)
    values = [value for base in bases for value in vars(base).values()]
    for file in files:
        there = vars(sys.modules[file]).values() if file in sys.modules else ()
        functions = [value for value in there if isinstance(value, (FunctionType, _MEMOISED))]
        values += [function for function in functions if function.__module__ == file]
    return list(dict.fromkeys(found for value in values for found in _behind(value)))


def users_classes(kinds: Iterable[type]) -> list[type]:
    """These classes and what they inherit from, each once, without those of torch."""
    found = dict.fromkeys(base for kind in kinds for base in kind.__mro__)
    return [base for base in found if not base.__module__.startswith("torch.")]


def _behind(value: object) -> Iterator[Any]:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if isinstance(value, _MEMOISED):
        yield value
    elif isinstance(value, FunctionType):  # a decorator may have put one around it
        for cell in value.__closure__ or ():
            try:
                inner = cell.cell_contents
            except ValueError:  # an empty cell
                continue
            if isinstance(inner, _MEMOISED):
                yield inner


@contextmanager
def emptied(functions: Sequence[Any]) -> Iterator[None]:
    """Inside, and afterwards, they remember nothing of before."""
    for function in functions:
        function.cache_clear()
    try:
        yield
    finally:
        for function in functions:
            function.cache_clear()
