"""The numbers of a Hugging Face configuration: where they stand, scaled, and the class that is built from them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)
Place = tuple[str, ...]
Powers = Mapping[Place, int]  # of a width's share in numbers: 1 grows with it, -1 shrinks as it grows (a ratio to it)
Shapes = dict[str, tuple[int, ...]]


def built_on_meta(network: nn.Module, config: object) -> nn.Module:
    """The class of `network` built from another configuration, without memory. Raises what its constructor raises."""
    with torch.device("meta"):
        return type(network)(copy.deepcopy(config))


def shapes_of(network: nn.Module) -> Shapes:
    """The shapes of its tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def shapes_or_none(network: nn.Module, explicit: Mapping[Place, int]) -> Shapes | None:
    """The shapes of its class with some numbers stated; None where it cannot be built so."""
    try:
        return shapes_of(built_on_meta(network, with_numbers(network.config, explicit, {})))
    except Exception as error:  # a constructor may refuse sizes in any way
        log.debug("%s: %s", explicit, said(error))
        return None


def implied_numbers(network: nn.Module, shapes: Shapes, values: Iterable[int]) -> dict[Place, int]:
    """Numbers that the configuration leaves open, or has not although its class asks for them (the size of a head), as
    far as one of `values` can be stated for each without a change of `shapes`."""
    config, found, tried = network.config, dict[Place, int](), sorted(values)
    for place in dict.fromkeys([*places_in(config, type(None)), *asked_in_vain(network)]):
        if shapes_or_none(network, {**found, place: tried[-1] + 1}) == shapes:
            continue  # no size
        for value in tried:
            trial = [shapes_or_none(network, {**found, place: v}) for v in (value, value + 1)]
            if trial[0] == shapes and trial[1] != shapes:
                found[place] = value
                break
    return found


def asked_in_vain(network: nn.Module) -> list[Place]:
    """Names that the class of `network` reads from its configuration, and from those inside of it, which has none."""
    found: dict[Place, None] = {}
    config: Any = copy.deepcopy(network.config)
    for path in [(), *_configs_in(config)]:
        holder = value_at(config, path)

        def missing(_: object, name: str, path: Place = path) -> object:
            if not name.startswith("_"):
                found[(*path, name)] = None
            raise AttributeError(name)

        holder.__class__ = type(type(holder).__name__, (type(holder),), {"__getattr__": missing})
    try:
        built_on_meta(network, config)
    except Exception as error:  # a constructor may look for the exact class of a configuration
        log.debug("%s: %s", type(network).__name__, said(error))
    return list(found)


def _configs_in(config: object, path: Place = ()) -> Iterator[Place]:
    for name, value in sorted(vars(config).items()):
        if callable(getattr(value, "to_dict", None)):
            yield (*path, name)
            yield from _configs_in(value, (*path, name))


def with_numbers(config: Any, explicit: Mapping[Place, int], scales: Mapping[Place, Fraction]) -> object:
    """A copy of a configuration with some numbers stated and some scaled. Raises what its class raises for them."""
    made = copy.deepcopy(config)
    for place, value in explicit.items():
        put(made, place, value)
    for place, scale in scales.items():
        number = scaled_at(made, place, scale)
        if number is None:
            raise ValueError(f"{'.'.join(place)} is no whole number at {scale} of its size")
        put(made, place, number)
    type(made).from_dict(made.to_dict())  # checks the numbers; the copy keeps what no dictionary holds
    return made


def places_in(config: object, kinds: type | tuple[type, ...], path: Place = ()) -> Iterator[Place]:
    """Where a configuration, or one inside of it, holds a value of these types."""
    for name, value in sorted(vars(config).items()):
        if callable(getattr(value, "to_dict", None)):
            yield from places_in(value, kinds, (*path, name))
        elif not name.startswith("_") and isinstance(value, kinds) and not isinstance(value, bool):
            yield (*path, name)
        elif isinstance(value, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value):
            yield from ((*path, name, str(number)) for number in range(len(value)))  # one a layer, or a stage


def value_at(config: Any, place: Place) -> Any:
    """What a configuration holds there."""
    for name in place:
        config = config[int(name)] if isinstance(config, list) else getattr(config, name)
    return config


def scaled_at(config: object, place: Place, scale: Fraction) -> int | float | None:
    """A number of the configuration, scaled; None where it would be zero, or no whole one any more and has to be."""
    value: int | float | None = value_at(config, place)
    if isinstance(value, float) and not math.isfinite(value):
        return value
    made = Fraction(value or 0) * scale
    if isinstance(value, float) or (made.denominator > 1 and _may_be_float(config, place)):
        near = float(made)  # above rather than below: int(size * ratio) drops what is missing to a whole number
        return near if Fraction(near) >= made else math.nextafter(near, math.inf)
    return int(made) if made.denominator == 1 and made > 0 else None


def _may_be_float(config: object, place: Place) -> bool:
    """Whether the class of the configuration says so where it names the types of its numbers."""
    names = [number for number, name in enumerate(place) if not name.isdigit()]
    holder, name = value_at(config, place[: names[-1]]), place[names[-1]]
    return any("float" in str(vars(kind).get("__annotations__", {}).get(name, "")) for kind in type(holder).__mro__)


def put(config: object, place: Place, value: int | float) -> None:
    """Write a number there, in place."""
    holder = value_at(config, place[:-1])
    if isinstance(holder, list):
        holder[int(place[-1])] = value
    else:
        setattr(holder, place[-1], value)


def said(error: Exception) -> str:
    """One line about what a constructor raised: its last one, which names the number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
