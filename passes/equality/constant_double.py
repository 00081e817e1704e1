"""A run that two networks of different sizes can be compared in: double precision, and nothing random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from passes.equality.double import InDouble
from passes.ops.meta_shapes import LightMode
from passes.process.state import seed_devices, state_kept
from passes.process.torch_private import schema_of

aten = torch.ops.aten


@contextmanager
def constant_double() -> Iterator[None]:
    """Inside, every type is double and every random number a constant; all settings are as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(state_kept())
        stack.enter_context(InDouble())
        stack.enter_context(NothingRandom())
        seed_devices(0)
        yield


@contextmanager
def nothing_random() -> Iterator[None]:
    """Inside, every random number is a constant, in types as they are; all settings are as before afterwards."""
    with state_kept(), NothingRandom():
        seed_devices(0)
        yield


class NothingRandom(LightMode):
    """Replaces what is drawn by what is expected: dropout keeps everything, noise is zero.

    Two networks of different sizes draw different numbers from one seed, and could not be compared.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        expected = _EXPECTED.get(func.overloadpacket)
        return func(*args, **kwargs) if expected is None else expected(func, *args, **kwargs)


def _chance(
    func: Callable[..., torch.Tensor], tensor: torch.Tensor, p: Any = None, *args: object, **kwargs: object
) -> torch.Tensor:
    """Flags drawn with a probability: that probability, which a call leaves out where it is one half."""
    if p is None and func in (aten.bernoulli_.float, aten.bernoulli.p):
        p = 0.5
    expected = tensor if p is None else torch.full_like(tensor, float(p)) if not torch.is_tensor(p) else p
    return tensor.copy_(expected) if schema_of(func).is_mutable else expected.clone()


def _kept_whole(func: Callable[..., torch.Tensor], tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
    return tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)


def _level(level: float) -> object:
    def expected(func: Callable[..., Any], *args: object, **kwargs: object) -> object:
        made = func(*args, **kwargs)
        return made.fill_(level)

    return expected


_EXPECTED: dict[Any, Any] = {
    **dict.fromkeys([aten.bernoulli, aten.bernoulli_], _chance),
    aten.native_dropout: _kept_whole,
    **dict.fromkeys([aten.rand, aten.rand_like, aten.uniform_], _level(0.5)),
    **dict.fromkeys([aten.randn, aten.randn_like, aten.normal_], _level(0.0)),
}
