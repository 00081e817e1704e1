"""The inputs that a proof runs on: the example itself, values like its own, normal random ones, and other sizes.

A proof on normal random numbers says nothing of a network that takes a square root of its input: what it compares is
no number. So the example's own values come first, then values drawn from them (with their range, sign and type), and
normal random ones beside these. Every size that the network may leave free is tried as well: the batch, lengths, image
sizes. Nothing here reads or moves torch's global random state.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

_LARGE = 1 << 13  # elements: an input of more is made smaller, not larger, where another size is tried
_CLASSES = 4  # how many different lengths are varied at most, the batch not counted


@dataclass(frozen=True)
class Draw:
    """One set of inputs, of the structure of the arguments, with floating point tensors in double precision.

    label: what they are, for messages ("like the example", "batch of 3"). required: whether a network that runs on
    the example must run on them; others may be inputs that it does not take (a length beyond its table), which is no
    fault of it. varies: which size differs from the example's, "" for none. Of the draws with one `varies` the first
    that the network takes is enough. before, after: that size in the example and here. random: whether values are
    normal random numbers and not like the example's.
    """

    label: str
    inputs: Any
    required: bool = False
    varies: str = ""
    before: int = 0
    after: int = 0
    random: bool = False

    @property
    def of_batch(self) -> bool:
        """Whether it is the batch that differs."""
        return self.varies.startswith("batch")


def draws(arguments: Any, seed: int = 0, runs: int = 2, device: torch.device | str | None = None) -> Iterator[Draw]:
    """Inputs like `arguments` (any tree of tensors and other values), the same ones for the same seed.

    First the example's own values, then `runs` - 1 sets drawn from them, one of normal random numbers, and for each
    size that may be free some with another one. Tensors on the meta device have no values: theirs are normal random,
    and ones where they are integers. What is no tensor stays as it is. device: where the tensors are put.

    Raises ValueError where runs is not positive: then nothing would be proven.

    >>> [draw.label for draw in draws((torch.rand(2, 3),))][:4]
    ['the example', 'like the example', 'normal random numbers', 'batch of 3 instead of 2']
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}; a proof takes at least one run")
    example = _Example(arguments, device)
    yield Draw("the example" if example.real else "normal random numbers", example.own(seed), True)
    for run in range(1, runs):
        label = "like the example" + (f", {run}" if runs > 2 else "")
        yield Draw(label if example.real else f"{label} (normal random numbers)", example.resampled(seed + run))
    if example.real:
        yield Draw("normal random numbers", example.random(seed), random=True)
    for number, size in enumerate(_sizes(example.tensors)):
        yield Draw(
            size.label, example.resized(seed + runs + number, size), False, size.name, size.before, size.after
        )  # fmt: skip


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to every tensor: in containers, data classes and mappings of any class."""
    return _mapped(function, tree, {})


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Every tensor of `tree`, in the order in which `map_tensors` meets them."""
    found: list[torch.Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, tree)  # type: ignore[func-returns-value]
    return found


def leaves_of(tree: Any) -> list[Any]:
    """What `tree` holds, in order: tensors and everything else that is no container; to compare two outputs."""
    found: list[Any] = []

    def visit(value: Any) -> None:
        parts = _parts(value)
        if parts is None:
            found.append(value)
        else:
            for part in parts:
                visit(part)

    visit(tree)
    return found


def _is_container(value: Any) -> bool:
    return type(value) in pytree.SUPPORTED_NODES or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _parts(value: Any) -> list[Any] | None:
    if isinstance(value, torch.Tensor):
        return None
    if _is_container(value):
        return list(pytree.tree_flatten(value, is_leaf=lambda part: part is not value)[0])
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _mapped(function: Callable[[torch.Tensor], Any], value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) not in memo:  # a tensor given twice is one tensor afterwards, too
            memo[id(value)] = function(value)
        return memo[id(value)]
    change = lambda part: _mapped(function, part, memo)  # noqa: E731
    if _is_container(value):
        parts, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        return pytree.tree_unflatten([change(part) for part in parts], spec) if parts else value
    if isinstance(value, Mapping):
        return _refilled(value, {key: change(part) for key, part in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(twin, field.name, change(getattr(value, field.name)))
        return twin
    return value


def _refilled(value: Mapping, entries: dict[Any, Any]) -> Any:
    twin: Any = copy.copy(value)
    if not hasattr(twin, "__setitem__"):
        return entries
    if getattr(twin, "data", None) is getattr(value, "data", ...):  # UserDict's copy may share what it holds
        twin.data = {}
    for key, entry in entries.items():
        twin[key] = entry
    return twin


@dataclass(frozen=True)
class _Size:
    """Another length for some dimensions: `places` holds (number of the tensor, dimension)."""

    name: str
    label: str
    places: frozenset[tuple[int, int]]
    before: int
    after: int


def _sizes(tensors: list[torch.Tensor]) -> Iterator[_Size]:
    """The sizes to try, for each of those that differ in the example; smaller ones where the inputs are large."""
    shaped = [t for t in tensors if t.dim()]
    if not shaped:
        return
    batch, large = int(shaped[0].shape[0]), max(t.numel() for t in shaped) > _LARGE
    places = [(number, dim) for number, tensor in enumerate(tensors) for dim in range(tensor.dim())]
    leading = frozenset((n, d) for n, d in places if d == 0 and tensors[n].shape[0] == batch)
    for after in dict.fromkeys((batch // 2 + 1 if batch > 3 else batch + 1 + (batch == 1), batch + 1)):
        yield _Size("batch", f"batch of {after} instead of {batch}", leading, batch, after)
    by_length: dict[int, list[tuple[int, int]]] = {}
    for number, dim in places:
        length = int(tensors[number].shape[dim])
        if (number, dim) not in leading and length > 1:
            by_length.setdefault(length, []).append((number, dim))
    for length, where in list(by_length.items())[:_CLASSES]:
        yield from _lengths(tensors, length, where, large)
    if batch > 1:  # programs treat it apart: they squeeze it away, or ask for it
        yield _Size("batch of one", f"batch of 1 instead of {batch}", leading, batch, 1)


def _lengths(
    tensors: list[torch.Tensor], length: int, where: list[tuple[int, int]], large: bool
) -> Iterator[_Size]:  # fmt: skip
    """Other lengths for the dimensions of one length: one dimension by itself first (an image need not be square)."""
    first, second = (length // 2, length + 1) if large and length > 3 else (2 * length, length + 1)
    dims = sorted({dim - tensors[number].dim() for number, dim in where}, reverse=True)
    single = [frozenset((n, d) for n, d in where if d - tensors[n].dim() == dim) for dim in dims[:2]]
    chosen = [(places, first) for places in single]
    if len(single[0]) < len(where):
        chosen.append((frozenset(where), first))
    chosen.append((single[0], second))
    for places, after in chosen:
        some = "" if len(places) == len(where) else " in one dimension"
        yield _Size(f"length {length}", f"length {after} instead of {length}{some}", places, length, after)


class _Example:
    """Example values, and others made of them."""

    def __init__(self, arguments: Any, device: torch.device | str | None) -> None:
        self.arguments, self.tensors = arguments, tensors_of(arguments)
        self.real = all(t.device.type != "meta" for t in self.tensors)
        self._device = device

    def own(self, seed: int) -> Any:
        """The example's own values; normal random ones, and ones for integers, where it has none."""
        generator = _generator(seed)
        return self._made(lambda number, tensor: self._values(tensor, tensor.shape, generator))

    def resampled(self, seed: int) -> Any:
        """Every element drawn from those of its tensor, real numbers moved a little."""
        generator = _generator(seed)

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            values = self._values(tensor, tensor.shape, generator)
            if tensor.is_meta or not tensor.numel():
                return values
            picked = torch.randint(values.numel(), (values.numel(),), generator=generator)
            return _moved(values.flatten()[picked.to(values.device)].reshape(values.shape), generator)

        return self._made(made)

    def random(self, seed: int) -> Any:
        """Normal random numbers; integers as in the example, which a network may use as places."""
        generator = _generator(seed)

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_floating_point() or tensor.is_complex():
                return _normal(tensor, tensor.shape, generator)
            return self._values(tensor, tensor.shape, generator)

        return self._made(made)

    def resized(self, seed: int, size: _Size) -> Any:
        """Values like the example's with another size: places along it are picked from those that there are."""
        generator = _generator(seed)
        orders: dict[int, torch.Tensor] = {}

        def made(number: int, tensor: torch.Tensor) -> torch.Tensor:
            dims = [dim for n, dim in size.places if n == number]
            shape = [size.after if dim in dims else length for dim, length in enumerate(tensor.shape)]
            if tensor.is_meta or not tensor.numel():
                return self._values(tensor, shape, generator)
            values = self._values(tensor, tensor.shape, generator)
            for dim in dims:
                if dim not in orders:  # the same ones for every tensor: values that belong together stay together
                    orders[dim] = _order(size.before, size.after, generator)
                values = values.index_select(dim, orders[dim].to(values.device))
            return _moved(values, generator)

        return self._made(made)

    def _made(self, function: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
        numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}

        def placed(tensor: torch.Tensor) -> torch.Tensor:
            made = function(numbers[id(tensor)], tensor)
            return made if self._device is None else made.to(self._device)

        return map_tensors(placed, self.arguments)

    def _values(self, tensor: torch.Tensor, shape: Any, generator: torch.Generator) -> torch.Tensor:
        """A copy of the example's tensor in double precision, or values of this shape where it has none."""
        if not tensor.is_meta:
            return tensor.detach().to(_double(tensor.dtype), copy=True)
        if tensor.is_floating_point() or tensor.is_complex():
            return _normal(tensor, shape, generator)
        return torch.ones(shape, dtype=tensor.dtype)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _double(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _normal(tensor: torch.Tensor, shape: Any, generator: torch.Generator) -> torch.Tensor:
    made = torch.randn(tuple(shape), generator=generator, dtype=_double(tensor.dtype))
    return made if tensor.is_meta else made.to(tensor.device)


def _moved(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Real numbers changed by up to a tenth, sign and range kept; whole numbers, and flags, as they are."""
    if not (values.is_floating_point() or values.is_complex()):
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
