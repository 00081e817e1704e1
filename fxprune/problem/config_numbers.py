"""The numbers of a Hugging Face configuration: where they stand, scaled, and the class that is built from them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)
Place = tuple[str, ...]
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
    """A number of the configuration, scaled; None where it would be no whole one any more, or zero."""
    value: int | float | None = value_at(config, place)
    if isinstance(value, float):
        return value * float(scale)
    made = Fraction(value or 0) * scale
    return int(made) if made.denominator == 1 and made > 0 else None


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
