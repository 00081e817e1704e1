"""The inputs that a proof runs on: the example itself, values like its own, normal random ones, and other sizes.

A proof on normal random numbers says nothing of a network that takes a square root of its input: what it compares is
no number. So the example's own values come first. Every size that the network may leave free is tried: the batch,
lengths, image sizes. Then come values drawn from the example's (with their range, sign and type), and normal random
ones: of a large example at the smaller sizes that the network took. Nothing here reads or moves torch's global random
state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from passes.equality.trees import map_tensors, tensors_of
from passes.nested_values import image_count, listed_images, with_another_image

Places = frozenset[tuple[int, int]]
"""Dimensions of inputs, as (number of the tensor, dimension)."""

_BATCH, _BATCH_OF_ONE = "batch", "batch of one"
_LARGE = 1 << 13  # elements: an input of more is made smaller, not larger, where another size is tried
_CLASSES = 4  # how many different lengths are varied at most, the batch not counted


@dataclass(frozen=True)
class Draw:
    """One set of inputs, of the structure of the arguments, with floating point tensors in double precision.

    label: what they are, for messages ("like the example", "batch of 3"). required: whether a network that runs on
    the example must run on them; others may be inputs that it does not take (a length beyond its table), which is no
    fault of it. varies: which size differs from the example's, "" for none. Of the draws with one `varies` the first
    that the network takes is enough. before, after: that size in the example and here. random: whether values are
    normal random numbers and not like the example's. places: the dimensions of that size, as (number of the tensor,
    dimension).
    """

    label: str
    inputs: Any
    required: bool = False
    varies: str = ""
    before: int = 0
    after: int = 0
    random: bool = False
    places: Places = field(default=frozenset(), repr=False)

    @property
    def of_batch(self) -> bool:
        """Whether it is the batch that differs."""
        return self.varies.startswith("batch")


def draws(
    arguments: object, seed: int = 0, runs: int = 2, device: torch.device | str | None = None,
    taken: Collection[Draw] = (), name: str = "the example", at_once: bool = False, varied: Places = frozenset(),
) -> Iterator[Draw]:  # fmt: skip
    """Inputs like `arguments` (any tree of tensors and other values), the same ones for the same seed.

    First the example's own values, then for each size that may be free some with another one, `runs` - 1 sets drawn
    from the example's values, and one of normal random numbers. Tensors on the meta device have no values: theirs are
    normal random, and ones where they are integers. What is no tensor stays as it is. device: where the tensors are
    put. taken: what the caller adds to while it goes through them, those at another size that a network took. Of such
    a size no more are drawn, and of a large example what follows has the smaller ones. name: of the arguments.
    at_once: all kinds of values come as samples of one batch, where that is free. varied: dimensions in which all have
    another size than the caller's inputs; of an image one of these is varied further, not every.

    Raises ValueError where runs is not positive: then nothing would be proven.

    >>> [draw.label for draw in draws((torch.rand(2, 3),))]  # doctest: +NORMALIZE_WHITESPACE
    ['the example', 'length 6 instead of 3', 'length 4 instead of 3', 'batch of 3 instead of 2',
     'batch of 1 instead of 2', 'like the example', 'normal random numbers']
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}; a proof takes at least one run")
    example = _Example(arguments, device)
    yield Draw(name if example.real else "normal random numbers", example.own(seed), True)
    mixed = None
    for number, size in enumerate(_sizes(example, varied)):
        if not any(draw.varies == size.name or _covers(draw, size) for draw in taken):
            sizes, several = [*_smaller(example, taken), size], at_once and size.name == _BATCH and size.after > 2
            inputs = (example.mixed if several else example.resized)(seed + runs + number, sizes)
            label = f"{size.label}: {example.kinds}" if several else size.label
            made = Draw(label, inputs, False, size.name, size.before, size.after, places=size.places)
            mixed = made if several else mixed
            yield made
    small, is_mixed = _smaller(example, taken), any(draw is mixed for draw in taken)
    for run in range(1 + is_mixed, runs):
        label = "like the example" + (f", {run}" if runs > 2 else "") + _SMALLER * bool(small)
        label = label if example.real else f"{label} (normal random numbers)"
        yield Draw(label, example.resampled(seed + run, small))
    if example.has_random and not is_mixed:
        yield Draw(f"normal random numbers{_SMALLER * bool(small)}", example.random(seed, small), random=True)


def smaller_example(
    arguments: object, seed: int, device: torch.device | str | None, taken: Collection[Draw]
) -> Draw | None:
    """The example at the smaller sizes among those that a network took; None where it is small, or took none."""
    example = _Example(arguments, device)
    small = _smaller(example, taken)
    return Draw(f"the example{_SMALLER}", example.resized(seed, small)) if small else None


def shrunk(
    arguments: Any, seed: int, device: torch.device | str | None, fits: Callable[[Any], bool], several: bool = False
) -> Draw | None:  # fmt: skip
    """The example with its sizes as much smaller as a network leaves them free: an eighth, a quarter or half of each.

    fits: whether smaller inputs are as good as the example. several: two samples where it is one, if that fits:
    statistics over smaller inputs need them. None where no smaller ones are.
    """
    example = _Example(arguments, device)
    sizes: list[_Size] = []
    batch, leading, _ = _places(example)
    two = _Size(_BATCH, "batch of 2 instead of 1", leading, 1, 2)
    if several and batch == 1 and fits(example.resized(seed, [two])):
        sizes.append(two)
    for same in _smaller_sizes(example):
        for size in same:
            if fits(example.resized(seed, [*sizes, size])):
                sizes.append(size)
                break
    if not any(size.after < size.before for size in sizes):
        return None
    said = ", ".join(size.label for size in sizes)
    places = frozenset().union(*(size.places for size in sizes))
    return Draw(f"the example{_SMALLER} ({said})", example.resized(seed, sizes), required=True, places=places)


_SMALLER = ", made smaller"


def _smaller(example: _Example, taken: Iterable[Draw]) -> list[_Size]:
    """The sizes along which a large example may be cut, the smallest for each dimension."""
    if not example.large:
        return []
    made: list[_Size] = []
    free = {place for draw in taken for place in draw.places}
    for draw in sorted(taken, key=lambda draw: draw.after):
        places = draw.places & free
        if places and draw.varies != _BATCH_OF_ONE and draw.after < draw.before:
            made.append(_Size(draw.varies, draw.label, places, draw.before, draw.after))
            free -= places
    return made


def _covers(draw: Draw, size: _Size) -> bool:
    """Whether lengths of the same dimensions were longer, or shorter, already."""
    alike = (draw.after > draw.before) == (size.after > size.before)
    return bool(draw.varies) and not draw.of_batch and alike and draw.places >= size.places


def another_image(arguments: object, seed: int = 0, device: torch.device | str | None = None) -> Draw | None:
    """The example with one image more, where images come in lists; None where they do not."""
    before = image_count(arguments)
    if not before:
        return None
    inputs = _Example(with_another_image(arguments), device).resized(seed, ())
    label = f"batch of {before + 1} images instead of {before}"
    return Draw(label, inputs, varies=_BATCH, before=before, after=before + 1)


def extremes(arguments: object, device: torch.device | str | None = None) -> Iterator[Draw]:
    """Inputs for a program that decides by values: real numbers at zero, turned around, and a thousand times as large.

    >>> [draw.label for draw in extremes((torch.rand(2, 3),))]
    ['zeros', 'minus the example', 'a thousand times the example']
    """
    example = _Example(arguments, device)
    for label, factor in (("zeros", 0), ("minus the example", -1), ("a thousand times the example", 1000)):
        yield Draw(label, example.scaled(factor))


@dataclass(frozen=True)
class _Size:
    """Another length for some dimensions: `places` holds (number of the tensor, dimension)."""

    name: str
    label: str
    places: Places
    before: int
    after: int


def _sizes(example: _Example, varied: Places) -> Iterator[_Size]:
    """The sizes to try, for each of those that differ in the example; smaller ones where the inputs are large."""
    batch, leading, by_length = _places(example)
    large = example.large
    some = 3 if large else batch // 2 + 1
    batches = [
        _Size(_BATCH, f"batch of {after} instead of {batch}", leading, batch, after)
        for after in dict.fromkeys((some if batch > 3 else batch + 1 + (batch == 1), batch + 1))
        if leading
    ]
    if batch > 3:  # what makes the inputs smaller comes first
        yield from batches
    for length, where in by_length.items():
        yield from _lengths(example.tensors, length, where, large, varied)
    if batch <= 3:
        yield from batches
    if batch > 1:  # programs treat it apart: they squeeze it away, or ask for it
        yield _Size(_BATCH_OF_ONE, f"batch of 1 instead of {batch}", leading, batch, 1)


def _places(example: _Example) -> tuple[int, Places, dict[int, list[tuple[int, int]]]]:
    """The batch (0 without one), the dimensions that are it, and those that are a length, by that length.

    Of images that come in a list, each may have its own height and width; no dimension is the batch then.
    """
    tensors, images = example.tensors, example.images
    places = [(number, dim) for number, tensor in enumerate(tensors) for dim in range(tensor.dim())]
    batch = 0 if images else next((int(t.shape[0]) for t in tensors if t.dim()), 0)
    leading = frozenset((n, d) for n, d in places if not images and d == 0 and tensors[n].shape[0] == batch)
    by_length: dict[int, list[tuple[int, int]]] = {}
    for number, dim in places:
        length = int(tensors[number].shape[dim])
        if (number, dim) not in leading and length > 1 and not (dim == 0 and number in images):
            by_length.setdefault(length, []).append((number, dim))
    return batch, leading, dict(list(by_length.items())[:_CLASSES])


def _lengths(
    tensors: list[torch.Tensor], length: int, where: list[tuple[int, int]], large: bool, varied: Places
) -> Iterator[_Size]:  # fmt: skip
    """Other lengths for the dimensions of one length.

    The last one by itself first, as an image need not be square; then the others, unless all have varied already; and
    shorter ones.
    """
    first = [2 * length]
    if large and length > 3:
        first = [length // part for part in (4, 2) if length >= 16 * part or part == 2]
    last = max(dim - tensors[number].dim() for number, dim in where)
    alone = frozenset((n, d) for n, d in where if d - tensors[n].dim() == last)
    every, others = frozenset(where), frozenset(where) - alone
    chosen = [(places, after) for after in first for places in dict.fromkeys((alone, every))]
    for places, after in (*chosen, (alone, length + 1)):
        some = " in one dimension" if places < every else ""
        yield _Size(f"length {length}", f"length {after} instead of {length}{some}", places, length, after)
    for after in first if others - varied else ():
        label = f"length {after} instead of {length} in the other dimensions"
        yield _Size(f"length {length} in the other dimensions", label, others, length, after)
    if not large and length > 3:
        half = length // 2
        yield _Size(f"length below {length}", f"length {half} instead of {length}", every, length, half)


def _smaller_sizes(example: _Example) -> Iterator[list[_Size]]:
    """For the batch, and for each length that may be free, the smaller ones, the smallest first."""
    batch, leading, by_length = _places(example)
    if batch > 2:
        yield [_Size(_BATCH, f"batch of 2 instead of {batch}", leading, batch, 2)]
    for length, where in by_length.items():
        made = []
        for after in [length // part for part in (8, 4, 2) if length >= 4 * part]:
            name, said = f"length {length}", f"length {after} instead of {length}"
            made.append(_Size(name, said, frozenset(where), length, after))
        yield made


class _Example:
    """Example values, and others made of them."""

    def __init__(self, arguments: object, device: torch.device | str | None) -> None:
        self.arguments, self.tensors = arguments, tensors_of(arguments)
        listed = listed_images(arguments)
        self.images = frozenset(number for number, tensor in enumerate(self.tensors) if id(tensor) in listed)
        self.real = all(t.device.type != "meta" for t in self.tensors)
        self.large = _is_large(self.tensors)
        self.has_random = self.real and any(map(_has_points, self.tensors))
        self.kinds = "like the example" + ", and normal random numbers" * self.has_random
        self._device = device

    def own(self, seed: int) -> Any:
        """The example's own values; normal random ones, and ones for integers, where it has none."""
        generator = _generator(seed)
        return self._made(lambda number, tensor: self._values(tensor, tensor.shape, generator))

    def resampled(self, seed: int, sizes: Sequence[_Size] = ()) -> Any:
        """Every element drawn from those of its tensor, real numbers moved a little."""
        generator = _generator(seed)

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            values = self._cut(number, tensor, sizes, {}, generator)
            if tensor.is_meta or not tensor.numel():
                return values
            picked = torch.randint(values.numel(), (values.numel(),), generator=generator)
            return _moved(values.flatten()[picked.to(values.device)].reshape(values.shape), generator)

        return self._made(made)

    def scaled(self, factor: int) -> Any:
        """The example's real numbers times `factor`."""
        generator = _generator(0)

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            values = self._values(tensor, tensor.shape, generator)
            return values * factor if _has_points(values) else values

        return self._made(made)

    def random(self, seed: int, sizes: Sequence[_Size] = ()) -> Any:
        """Normal random numbers; integers as in the example, which a network may use as places."""
        generator = _generator(seed)
        orders: dict[tuple[int, int, int], torch.Tensor] = {}

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            values = self._cut(number, tensor, sizes, orders, generator)
            return _normal(tensor, values.shape, generator) if _has_points(tensor) else values

        return self._made(made)

    def resized(self, seed: int, sizes: Sequence[_Size]) -> Any:
        """Values like the example's with other sizes: places along them are picked from those that there are."""
        generator = _generator(seed)
        orders: dict[tuple[int, int, int], torch.Tensor] = {}

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            values = self._cut(number, tensor, sizes, orders, generator)
            return values if tensor.is_meta or not tensor.numel() else _moved(values, generator)

        return self._made(made)

    def mixed(self, seed: int, sizes: Sequence[_Size]) -> Any:
        """One batch of all kinds, sample by sample; the last of the sizes is that of the batch."""
        kinds = [self.resized(seed, sizes), self.resampled(seed, sizes)]
        if self.has_random:
            kinds.append(self.random(seed, sizes))
        values = list(zip(*map(tensors_of, kinds), strict=True))

        def made(number: int, _: torch.Tensor) -> torch.Tensor:
            first, *others = values[number]
            for place, other in enumerate(others, 1) if (number, 0) in sizes[-1].places else ():
                first[place :: len(kinds)] = other[place :: len(kinds)]
            return first

        return self._made(made)

    def _cut(
        self, number: int, tensor: torch.Tensor, sizes: Sequence[_Size],
        orders: dict[tuple[int, int, int], torch.Tensor], generator: torch.Generator,
    ) -> torch.Tensor:  # fmt: skip
        """Values of the example's tensor of this number at these sizes.

        orders: the places picked along a dimension, the same ones for every tensor: values that belong together stay
        together.
        """
        here = {dim: size for size in sizes for n, dim in size.places if n == number}  # of one dimension the last
        if tensor.is_meta or not tensor.numel():
            shape = list(tensor.shape)
            for dim, size in here.items():
                shape[dim] = size.after
            return self._values(tensor, shape, generator)
        values = self._values(tensor, tensor.shape, generator)
        for dim, size in sorted(here.items()):
            key = dim, size.before, size.after
            if key not in orders:
                orders[key] = _order(size.before, size.after, generator)
            values = values.index_select(dim, orders[key].to(values.device))
        return values

    def _made(self, function: Callable[[int, torch.Tensor], torch.Tensor]) -> object:
        numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}

        def placed(tensor: torch.Tensor) -> torch.Tensor:
            made = function(numbers[id(tensor)], tensor)
            return made if self._device is None else made.to(self._device)

        return map_tensors(placed, self.arguments)

    def _values(self, tensor: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """A copy of the example's tensor in double precision, or values of this shape where it has none."""
        if not tensor.is_meta:
            return tensor.detach().to(_double(tensor.dtype), copy=True)
        return _normal(tensor, shape, generator) if _has_points(tensor) else torch.ones(shape, dtype=tensor.dtype)


def _has_points(tensor: torch.Tensor) -> bool:
    """Whether it holds real or complex numbers, not whole ones or flags."""
    return tensor.is_floating_point() or tensor.is_complex()


def _is_large(tensors: Sequence[torch.Tensor]) -> bool:
    return max((tensor.numel() for tensor in tensors), default=0) > _LARGE


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _double(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _normal(tensor: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    made = torch.randn(tuple(shape), generator=generator, dtype=_double(tensor.dtype))
    return made if tensor.is_meta else made.to(tensor.device)


def _moved(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Real numbers changed by up to a tenth, sign and range kept; whole numbers, and flags, as they are."""
    if not _has_points(values):
        return values
    finite = torch.isfinite(torch.view_as_real(values)).all(-1) if values.is_complex() else torch.isfinite(values)
    if not bool(finite.any()) or bool((values[finite] == torch.round(values[finite].real)).all()):
        return values
    factor = 0.9 + 0.2 * torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    moved = torch.where(finite, values * factor, values)
    if values.is_complex():
        return moved
    low, high = values[finite].min(), values[finite].max()
    return torch.where(finite, moved.clamp(low, high), values) if bool(low < high) else moved


def _order(before: int, after: int, generator: torch.Generator) -> torch.Tensor:
    """`after` places out of `before`: all of them before one comes again, in ascending order within each round."""
    rounds = [torch.arange(before) for _ in range(after // before)]
    rest = torch.randperm(before, generator=generator)[: after % before]
    return torch.cat([*rounds, rest.sort().values])
