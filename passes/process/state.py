"""What belongs to the whole process: one lock for all who change it, and its state put back afterwards.

Tracing replaces methods of torch's classes, analysing switches fast paths off, proving draws numbers where a network
does. All of that is seen by every thread, so one thread at a time does it; and when a call ends, in whatever way,
random numbers, grad mode and settings are as they were.
"""

from __future__ import annotations

import functools
import pickle
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from passes.process.outside_state import outside_kept
from passes.process.settings import settings_kept, tensors_with_values

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.RLock()
_inside = threading.local()


@contextmanager
def exclusive() -> Iterator[None]:
    """Inside (or as a decorator), no other thread is inside; a thread that is may enter again."""
    with _lock:
        yield


@contextmanager
def state_kept() -> Iterator[None]:
    """On leaving, also by an error, random states and torch's settings are what they were on entering."""
    put_back = random_numbers_kept()
    with settings_kept():
        try:
            yield
        finally:
            put_back()


def leaves_no_trace(function: Callable[P, T]) -> Callable[P, T]:
    """A public call that runs alone in the process and leaves its state as it was, whatever model code does."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if getattr(_inside, "entered", False):  # one public call within another: the outer one puts back
            return function(*args, **kwargs)
        with exclusive(), state_kept(), tensors_with_values(), outside_kept([*args, *kwargs.values()]):
            _inside.entered = True
            try:
                return function(*args, **kwargs)
            finally:
                _inside.entered = False

    return call


def random_numbers_kept() -> Callable[[], None]:
    """A function that puts the random states back to what they are now."""
    restore = list(_random_states())

    def put_back() -> None:
        for one in restore:
            one()

    return put_back


def _random_states() -> Iterator[Callable[[], object]]:
    yield functools.partial(random.setstate, random.getstate())
    yield functools.partial(np.random.set_state, np.random.get_state())
    yield functools.partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    if torch.backends.mps.is_available():
        yield functools.partial(torch.mps.set_rng_state, torch.mps.get_rng_state())


def seed_all(seed: int) -> None:
    """Have Python, NumPy and torch (every device) draw from `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_devices(seed: int) -> None:
    """`torch.manual_seed` for devices that are in use: for others torch keeps the seed, with a trace of the stack."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def generators_of(modules: Iterable[object]) -> list[object]:
    """The generators of random numbers among the attributes of these modules."""
    held, kinds = [vars(module).values() for module in modules], set[type]()
    for values in held:
        kinds.update(map(type, values))  # few: to ask each value takes long
    kinds = {kind for kind in kinds if issubclass(kind, _GENERATORS)}
    return [value for values in held for value in values if type(value) in kinds] if kinds else []


_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)


def random_state(generators: Iterable[object] = ()) -> tuple[object, ...]:
    """The states of all generators: another one says that numbers were drawn in between.

    generators: a module's own (see `generators_of`), which count too.
    """
    states = [torch.get_rng_state(), *(own.get_state() for own in generators if isinstance(own, torch.Generator))]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states.append(torch.mps.get_rng_state())
    return *drawn_in_python(generators), *(state.cpu().numpy().tobytes() for state in states)


def drawn_in_python(generators: Iterable[object] = ()) -> tuple[object, ...]:
    """The states of the generators of Python and NumPy: another one says that numbers were drawn in between.

    generators: a module's own (see `generators_of`), which count too.
    """
    found = [random.getstate(), *(np.asarray(part).tobytes() for part in np.random.get_state(legacy=True))]
    for own in generators:
        if isinstance(own, random.Random) and not isinstance(own, random.SystemRandom):
            found.append(own.getstate())
        elif isinstance(own, np.random.RandomState):
            found.append(pickle.dumps(own.get_state()))
        elif isinstance(own, np.random.Generator):
            found.append(pickle.dumps(own.bit_generator.state))
    return tuple(found)
