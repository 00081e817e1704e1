"""Random networks: short programs over images, whose steps are blocks of tests/blocks.py.

A program is plain data, a list of steps (block, first operand, second operand, k), so that what hypothesis shrinks
can be pasted into the permanent table of test_fuzz.py. Every list of steps is a valid program: operands are counted
modulo the values there are, and a projection is put in front of a block that needs another number of channels.
"""

from __future__ import annotations

import torch
from blocks import BLOCKS, PAIRS, Block
from hypothesis import strategies as st
from torch import Tensor, nn

Step = tuple[str, int, int, int]
SIDE = 4
_MOST_CHANNELS = 32
_AGAIN = "Again"  # the module of an earlier step once more

NAMES = (*BLOCKS, *PAIRS, _AGAIN)
steps = st.tuples(st.sampled_from(NAMES), st.integers(0, 5), st.integers(0, 5), st.integers(0, 11))
programs = st.lists(steps, min_size=2, max_size=7)


class Program(nn.Module):
    """The network of a list of steps; every value that no step reads goes into the output."""

    def __init__(self, program: list[Step]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks, self.fits, self.wires = nn.ModuleList(), nn.ModuleList(), []
        channels = [8]
        for name, a, b, k in program:
            a, b = a % len(channels), b % len(channels)
            module, fit, wire = self._step(name, a, b, k, channels)
            self.blocks.append(module)
            self.fits.append(fit)
            self.wires.append(wire)
            channels.append(module.out)
        read = {place for wire in self.wires for place in wire}
        self.ends = [place for place in range(len(channels)) if place not in read]
        self.heads = nn.ModuleList(nn.Linear(channels[place], 3) for place in self.ends)

    def _step(self, name: str, a: int, b: int, k: int, channels: list[int]) -> tuple[Block, nn.Module, tuple[int, ...]]:
        if name in PAIRS:
            if channels[a] + channels[b] <= _MOST_CHANNELS:
                return PAIRS[name](channels[a], channels[b], k=k), nn.Identity(), (a, b)
            name = "Conv"
        if name == _AGAIN:
            earlier = self._earlier(b, channels[a], channels)
            if earlier is not None:
                return earlier, nn.Identity(), (a,)
            name = "Conv"
        kind = BLOCKS[name]
        c, fit = channels[a], nn.Identity()
        if c % kind.needs or c < 2 or c > _MOST_CHANNELS // 2:
            fit, c = nn.Conv2d(c, 12, 1), 12
        return kind(c, k=k), fit, (a,)

    def _earlier(self, number: int, c: int, channels: list[int]) -> Block | None:
        """The block of an earlier step, where it took one operand of `c` channels as it was."""
        if not self.wires:
            return None
        place = number % len(self.wires)
        fits = len(self.wires[place]) == 1 and isinstance(self.fits[place], nn.Identity)
        return self.blocks[place] if fits and channels[self.wires[place][0]] == c else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [self.stem(x)]
        for block, fit, wire in zip(self.blocks, self.fits, self.wires, strict=True):
            first, *others = (values[place] for place in wire)
            values.append(block(fit(first), *others))
        return tuple(head(values[place].mean((2, 3))) for head, place in zip(self.heads, self.ends, strict=True))


def network(program: list[Step], seed: int = 0) -> nn.Module:
    """The network of `program` with weights from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Program(program)


def images() -> Tensor:
    """Inputs of a program."""
    return torch.randn(2, 3, SIDE, SIDE)
