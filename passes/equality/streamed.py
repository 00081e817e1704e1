"""Parameters that hold their values only while operators use them: a second copy of the weights never exists.

A copy of a network is given parameters of the right size and type in memory that no page stands behind. `Streamed` is
the dispatch mode under which it runs: it fills what a call takes just before the call, and gives the pages of all
others back. Views of a parameter share its memory, so they are filled with it. (Memory that is allocated and freed
again and again would stay with the process: the C library keeps pieces of up to 32 MB.)
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from passes.graph.module_copies import like
from passes.ops.meta_shapes import LightMode
from passes.ops.storage import written_arguments
from passes.process.torch_private import no_dispatch_modes, schema_of, storage_id
from passes.stream.inference import tensors_in

Copied = Callable[[torch.Tensor], torch.Tensor]
"""Makes a copy of a tensor in the type of a run."""

Make = Callable[[str, torch.Tensor, Copied], torch.Tensor]
"""What a tensor of a network, by its name, holds in a copy: made of what the last argument makes of it."""

SMALL = 1 << 16  # elements: a parameter of fewer is worth no care
ROOM = 1 << 28  # bytes that may stay filled while no call uses them


@dataclass(eq=False)
class _Held:
    """One parameter: `data` has its memory, and no history of writes that a program could see."""

    name: str
    original: torch.Tensor
    data: torch.Tensor
    pages: mmap.mmap | None  # what `data` lies in, where the system can take single pages back
    size_bytes: int
    filled: bool = False
    written: bool = False

    def fill(self) -> None:
        """Have memory."""
        if self.pages is None:
            self.data.untyped_storage().resize_(self.size_bytes)
        self.filled = True

    def empty(self) -> None:
        """Give it back to the system."""
        if self.pages is not None:
            self.pages.madvise(mmap.MADV_DONTNEED)
        else:
            self.data.untyped_storage().resize_(0)
        self.filled = False


def _held(name: str, original: torch.Tensor, kind: torch.dtype) -> _Held:
    """A parameter of that size in another type, empty."""
    like_it = torch.empty_like(original.detach(), dtype=kind, device="meta")
    device = torch.device("cpu") if original.is_meta else original.device
    size_bytes = like_it.untyped_storage().nbytes()
    if device.type == "cpu" and sys.platform == "linux":
        pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without large pages; with them, filling takes a seventh of the time
            pages.madvise(mmap.MADV_HUGEPAGE)
        data = torch.frombuffer(pages, dtype=kind).as_strided(like_it.shape, like_it.stride())
        return _Held(name, original, data, pages, size_bytes)
    held = _Held(name, original, torch.empty_like(like_it, device=device), None, size_bytes)
    held.empty()
    return held


class Streamed(LightMode):
    """The mode, and the function (name, tensor) that gives copies of a network their parameters: all the same ones.

    Small parameters, and whatever is no parameter, are made anew for each copy and hold their values. One that a run
    has written into is kept for that copy, and made anew for the next. room: bytes that may stay filled, if all find
    room there; of more none would be used again before it had to go. at_once: all are filled from the beginning and
    stay so, for programs that may read values where no mode sees it.
    """

    def __init__(self, make: Make, copied: Copied, at_once: bool, room: int = ROOM) -> None:
        super().__init__()
        self._make, self._copied, self._at_once, self._room = make, copied, at_once, room
        self._by_name: dict[str, _Held] = {}
        self._by_storage: dict[int, _Held] = {}
        self._used: dict[int, _Held] = {}  # those that are filled

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) is not nn.Parameter or tensor.numel() < SMALL or not tensor.is_floating_point():
            return like(tensor, self._make(name, tensor, self._copied))
        held = self._by_name.get(name)
        if held is None or held.written:
            held = _held(name, tensor, self._copied(tensor.detach().flatten()[:1]).dtype)
            self._by_name[name] = self._by_storage[storage_id(held.data)] = held
            if self._at_once:
                self._fill(held)
        return like(tensor, held.data.data)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        needed = {id(held): held for held in map(self._held, tensors_in(*args, *kwargs.values())) if held is not None}
        if not needed:
            return func(*args, **kwargs)
        for held in needed.values():
            self._fill(held)
        self._used.update(needed)
        for tensor in tensors_in(*written_arguments(func, args, kwargs)) if schema_of(func).is_mutable else ():
            if (into := self._held(tensor)) is not None:
                into.written = True
        result = func(*args, **kwargs)
        if not self._at_once:
            self._empty(needed)
        return result

    def _held(self, tensor: torch.Tensor) -> _Held | None:
        """The parameter whose memory a tensor has."""
        if tensor.layout != torch.strided or tensor.is_nested:
            return None
        return self._by_storage.get(storage_id(tensor))

    def _fill(self, held: _Held) -> None:
        if held.filled:
            return
        with no_dispatch_modes(), torch.no_grad():  # no call of the network: none may count it
            held.fill()
            made = self._make(held.name, held.original, lambda tensor: self._into(held, tensor))
            if made.data_ptr() != held.data.data_ptr():
                held.data.copy_(made)

    def _into(self, held: _Held, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor, in place where it is that of the parameter itself."""
        return held.data.copy_(tensor.detach()) if tensor is held.original else self._copied(tensor)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if not self._at_once:
            self._empty({})

    def _empty(self, needed: Mapping[int, _Held]) -> None:
        """Give memory back, unless all find room: what is neither in use nor written into."""
        if sum(held.size_bytes for held in self._by_name.values()) <= self._room:
            return
        for key, held in list(self._used.items()):
            if not held.written and key not in needed:
                held.empty()
                del self._used[key]
