"""Which positions of its operand a call takes: slices, selections, orders, rolls and padding as lists of places.

A cut module must take what is left of the same positions. A length says nothing of that: ``x[:, 3:4]`` is one channel
before and after channels in front of it are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passes.ops.call import signature
from passes.ops.table import NumbersOf, Picked, traits_of
from passes.process.torch_private import OpOverload


def picked(
    func: OpOverload, args: Sequence[object], kwargs: dict[str, object], shape: Sequence[int], index_of: NumbersOf
) -> Picked | None:
    """What a call on an operand of `shape` takes of each dimension that it does not take whole; None for others.

    index_of: the numbers of an index among the arguments, None where the program does not state them.
    """
    picks = traits_of(func).picks
    if picks is None:
        return None
    names, defaults = signature(func)
    return picks({**defaults, **dict(zip(names, args, strict=False)), **kwargs}, list(shape), index_of)


def renumbered(places: Sequence[int], taken: np.ndarray, remain: np.ndarray) -> list[int] | None:
    """Those `places` of an axis that are left, by their new numbers.

    taken: which of the places belong to positions of the result that stay. remain: which positions of the axis stay.
    None where a position that stays takes one that does not.
    """
    new = np.cumsum(remain) - 1
    kept = [place for place, stays in zip(places, taken, strict=True) if stays]
    if any(place >= 0 and not remain[place] for place in kept):
        return None
    return [int(new[place]) if place >= 0 else -1 for place in kept]
