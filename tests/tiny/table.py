"""The table of tiny networks: each row a network, its inputs, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One network: `groups` names and sizes every group it must offer, `why` is part of a reason for what must stay.

    shares: which shares of the units are kept, one pruning each.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: str
    why: str
    shares: tuple[float, ...]


TABLE: dict[str, Row] = {}


def tiny(
    groups: str, inputs: Callable[[], Any] | None = None, why: str = "", shares: tuple[float, ...] = (1 / 2, 1 / 3)
) -> Callable[[Any], Any]:
    """Enter a network class (or a function that makes one) into the table under its own name."""

    def enter(make: Any) -> Any:
        assert make.__name__ not in TABLE, f"two networks are called {make.__name__}"
        TABLE[make.__name__] = Row(make.__name__, make, inputs or image, groups, why, shares)
        return make

    return enter


def image(channels: int = 3, *space: int) -> Tensor:
    """Two images; (2, 3, 8, 8) where nothing else is said."""
    return torch.randn(2, channels, *(space or (8, 8)))


def of(*shape: int) -> Callable[[], Tensor]:
    """Makes a normal random tensor of `shape`."""
    return lambda: torch.randn(*shape)


def words(count: int, *shape: int) -> Callable[[], Tensor]:
    """Makes random token numbers below `count`."""
    return lambda: torch.randint(0, count, shape)


class Stem(nn.Module):
    """conv1 (3 to 8 channels), then what `middle` does, then conv2, which takes `joined` channels.

    Most rows are this with a `middle` of one line, so that a row shows what it is about.
    """

    joined = 8
    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self.width, 3, padding=1)
        self.conv2 = nn.Conv2d(self.joined, 5, 3)
        self.setup()

    def setup(self) -> None:
        """Further modules of a row."""

    def middle(self, x: Tensor) -> Tensor:
        """What the row is about."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.middle(torch.relu(self.conv1(x))))
