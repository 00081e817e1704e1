"""Second moments of what an operator reads: sums over data that can be added up, in double precision.

Of the symmetric matrix only blocks on and above the diagonal are held, which halves memory and work. Few rows of many
columns are kept as they are until there are enough of them: their sums would be larger.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

_TILE = 512
HELD_ROWS = 768
_SHARE = 4  # rows are kept while they take less than this part of the memory of their sums

_latest: list[weakref.ref[Moments]] = []  # whose sums over rows that are kept are at hand: of one at most


@dataclass
class Moments:
    """Sums of u u^T over rows u = (what is read, 1), for each group, and held-out rows that are in no sum.

    columns: how many entries a row has, without the 1. summed: for each stretch of 512 rows of the matrix its part on
    and right of the diagonal, (groups, rows, rest), float64; kept: rows that are in none of these yet, each with the
    number that it stands for. held: (groups, rows, columns), float32.
    """

    groups: int
    columns: int
    count: float = 0.0
    summed: list[Tensor] = field(default_factory=list)
    held: Tensor | None = None
    held_seen: int = 0
    kept: list[tuple[Tensor, float]] = field(default_factory=list)
    _whole: list[Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self.summed and not self.kept

    @property
    def device(self) -> torch.device:
        """Where the sums are, or the rows that are kept."""
        held = next(iter([*self.summed, *(rows for rows, _ in self.kept)]), None)
        return torch.device("cpu") if held is None else held.device

    @property
    def tiles(self) -> list[Tensor]:
        """The sums over all rows, as `summed`; with rows that are kept, at hand until those of others are asked for."""
        if not self.kept:
            return self.summed
        if self._whole is None:
            for other in (found for found in (known() for known in _latest) if found is not None):
                other._whole = None
            _latest[:] = [weakref.ref(self)]
            self._whole = self._sums([tile.clone() for tile in self.summed])
        return self._whole

    def sum_up(self) -> None:
        """Put all rows that are kept into `summed`."""
        if self.kept:
            self.summed, self.kept, self._whole = self._sums(self.summed), [], None

    def to(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.summed, self._whole = [tile.to(device) for tile in self.summed], None
        self.kept = [(rows.to(device), weight) for rows, weight in self.kept]

    def _sums(self, tiles: list[Tensor]) -> list[Tensor]:
        """`tiles` with the rows that are kept added to them."""
        size = self.columns + 1
        for rows, weight in self.kept:
            tiles = tiles or [
                torch.zeros(self.groups, min(_TILE, size - at), size - at, dtype=torch.float64, device=rows.device)
                for at in range(0, size, _TILE)
            ]
            for part in rows.split(16384, dim=1):  # float32 products of a bounded number of rows, float64 sums of them
                for number, tile in enumerate(tiles):
                    at = number * _TILE
                    product = part[:, :, at : at + tile.shape[1]].mT @ part[:, :, at:]
                    tile.add_(product, alpha=weight)
        return tiles

    def add(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add readings (groups, n, columns), each standing for `weight` rows."""
        device = torch.device("cpu") if rows.device.type == "mps" else rows.device
        rows = rows.detach().to(device)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        ones = rows.new_ones(*rows.shape[:2], 1)
        self.kept.append((torch.cat([rows, ones], 2), weight))
        self.count += weight * rows.shape[1]
        self._whole = None
        size_bytes = sum(kept.numel() * kept.element_size() for kept, _ in self.kept)
        if self.summed or _SHARE * size_bytes > 4 * self.groups * (self.columns + 1) ** 2:
            self.sum_up()

    def hold(self, rows: Tensor, generator: torch.Generator) -> None:
        """Keep some of these readings for measuring errors on data that no sum has seen: a uniform sample of all."""
        rows = rows.detach().to("cpu", torch.float32)
        take = min(rows.shape[1], max(32, HELD_ROWS // 4))
        chosen = rows[:, torch.randperm(rows.shape[1], generator=generator)[:take]]
        both = chosen if self.held is None else torch.cat([self.held, chosen], 1)
        self.held_seen += rows.shape[1]
        if both.shape[1] > HELD_ROWS:
            both = both[:, torch.randperm(both.shape[1], generator=generator)[:HELD_ROWS]]
        self.held = both.contiguous()

    def matrix(self, group: int = 0) -> Tensor:
        """The mean of u u^T of one group, (columns + 1, columns + 1), float64; the last row and column are the mean."""
        size = self.columns + 1
        tiles = self.tiles
        full = torch.empty(size, size, dtype=torch.float64, device=tiles[0].device if tiles else None)
        if not tiles:
            return full.zero_()
        for number, tile in enumerate(tiles):
            at = number * _TILE
            full[at : at + tile.shape[1], at:] = tile[group]
            full[at:, at : at + tile.shape[1]] = tile[group].mT
        return full / max(self.count, 1.0)

    def rows(self, group: int = 0) -> Tensor | None:
        """U (rows, columns + 1), float64, of which ``U.T @ U`` is `matrix(group)`; None where rows are in sums only."""
        if self.summed or not self.kept:
            return None
        count = max(self.count, 1.0)
        return torch.cat([rows[group].double() * (weight / count) ** 0.5 for rows, weight in self.kept])

    def diagonal(self, group: int = 0) -> Tensor:
        """The mean of u^2 of one group, (columns + 1,)."""
        return torch.cat([tile[group].diagonal() for tile in self.tiles]) / max(self.count, 1.0)

    def block(self, group: int, rows: Tensor, columns: Tensor) -> Tensor:
        """The entries of `matrix(group)` at these rows and columns, both ascending, without the rest of it."""
        ends = torch.arange(len(self.tiles) + 1, device=rows.device) * _TILE
        places = [torch.searchsorted(at.contiguous(), ends).tolist() for at in (rows, columns)]
        made = torch.empty(len(rows), len(columns), dtype=torch.float64, device=self.tiles[0].device)
        for i, tile in enumerate(self.tiles):
            for transposed in (False, True):
                own, other = (columns, rows) if transposed else (rows, columns)
                mine, theirs = (places[1], places[0]) if transposed else (places[0], places[1])
                stretch = slice(mine[i], mine[i + 1])
                rest = slice(theirs[i + 1] if transposed else theirs[i], len(other))
                inside = own[stretch] - i * _TILE
                found = tile[group].index_select(0, inside).index_select(1, other[rest] - i * _TILE)
                if transposed:
                    made[rest, stretch] = found.T
                else:
                    made[stretch, rest] = found
        return made.div_(max(self.count, 1.0))

    def merge(self, other: Moments) -> None:
        """Add what `other` has summed over other data."""
        if (self.groups, self.columns) != (other.groups, other.columns):
            expected = f"{self.groups} x {self.columns}"
            raise ValueError(f"moments of {other.groups} x {other.columns} columns, expected {expected}")
        self.sum_up()
        if not self.summed:
            self.summed = [t.clone() for t in other.tiles]
        else:
            for mine, theirs in zip(self.summed, other.tiles, strict=not other.is_empty):
                mine += theirs.to(mine.device)
        self.count += other.count
        self.held_seen += other.held_seen
        if other.held is not None:
            both = other.held if self.held is None else torch.cat([self.held, other.held], 1)
            step = max(1, -(-both.shape[1] // HELD_ROWS))
            self.held = both[:, ::step].contiguous()

    @property
    def size_bytes(self) -> int:
        """Memory that the sums and the held-out rows take."""
        held = [] if self.held is None else [self.held]
        return sum(t.numel() * t.element_size() for t in [*self.summed, *(rows for rows, _ in self.kept), *held])
