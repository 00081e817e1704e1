"""Widths with which the class of a Hugging Face model can be built from its own configuration, found by building it.

A configuration has one `intermediate_size` for all layers, one number of heads, one hidden size. A bundle of groups
(the same layer of every block, or heads together with the hidden size) is prunable here if some numbers of the
configuration, scaled as the bundle is, make the stock class have the shapes of the cut network, and with the cut
weights its outputs. All other groups keep their sizes. What is saved then loads with `from_pretrained` of the unchanged
class, and wherever else such folders are read.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.problem.config_numbers import (
    Place,
    Shapes,
    built_on_meta,
    places_in,
    said,
    scaled_at,
    shapes_of,
    shapes_or_none,
    value_at,
    with_numbers,
)
from fxprune.problem.equal_widths import Sets, block_sets, smallest_unit
from fxprune.problem.stock_equality import differs
from passes import Coupling, Plan, apply_plan
from passes.axes.expressions import leaves
from passes.transform.slicing import Slicing

log = logging.getLogger(__name__)
PRESET = "huggingface"
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_DRAWS = 3  # of widths of all bundles together, at which the configuration must be accepted


@dataclass(frozen=True)
class StockWidths:
    """Which groups a configuration can state.

    sets: bundles of groups whose widths stay in proportion. places: for the first group of each, where the
    configuration holds numbers that are proportional to its width. sizes: of these groups before. steps: what their
    widths must be multiples of. explicit: numbers that the configuration implied, and has to state now. excluded:
    groups that keep their size, and why.
    """

    sets: Sets = ()
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    explicit: Mapping[Place, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)

    def configured(self, config: object, widths: Mapping[str, int]) -> Any:
        """A new configuration that states `widths`. Raises what its class raises for numbers that it refuses."""
        scales: dict[Place, Fraction] = {}
        for first, places in self.places.items():
            for place in places:  # heads are the product of key-value heads and of queries for each
                scales[place] = scales.get(place, Fraction(1)) * Fraction(widths[first], self.sizes[first])
        return with_numbers(config, self.explicit, scales)


def stock_widths(network: nn.Module, coupling: Coupling, example_inputs: object) -> StockWidths:
    """The groups that the model's own configuration can state. Raises InputError where it has none."""
    config = getattr(network, "config", None)
    if config is None or not callable(getattr(config, "to_dict", None)) or not hasattr(network, "save_pretrained"):
        raise InputError(
            f"same_width: {PRESET!r} is for models of transformers, which have a config and save_pretrained; "
            f"got a {type(network).__name__}. Name patterns of groups, or 'blocks'."
        )
    search = _Search(network, coupling, example_inputs)
    if search.built({}) != search.shapes:
        raise InputError(
            f"same_width: {PRESET!r}: {type(network).__name__} built from its own config has other shapes than this "
            "model; was it pruned before, or changed after it was made? Name patterns of groups instead."
        )
    return search.run()


def stated_config(network: nn.Module, coupling: Coupling, plan: Plan, example_inputs: object) -> Any:
    """The configuration of the stock class that is what `plan` makes of `network`; a text that says why there is none.

    network: a model of transformers, its weights on the meta device.
    """
    search = _Search(network, coupling, example_inputs)
    if search.built({}) != search.shapes:
        return f"{type(network).__name__} built from its own config has other shapes than this model"
    return search.stated(plan)


def state_widths(model: nn.Module, stock: StockWidths, widths: Mapping[str, int], example_inputs: object) -> None:
    """Write `widths` into the model's configuration.

    Raises InputError where the stock class of these widths computes something else.
    """
    try:
        config = stock.configured(model.config, widths)
        why = differs(model, config, example_inputs)
    except Exception as error:  # a constructor may refuse sizes in any way
        why = said(error)
    if why:
        raise InputError(f"same_width: {PRESET!r}: the stock class at the chosen widths: {why}; prune with 'blocks'.")
    old: Any = model.config
    kind = type(old)
    model.config = config
    for part in model.modules():
        own: Any = getattr(part, "config", None)
        if type(own) is kind and own.to_dict() == old.to_dict():
            part.config = config


class _Search:
    """Finds bundles one after the other; a group belongs to one at most."""

    def __init__(self, network: nn.Module, coupling: Coupling, example_inputs: object) -> None:
        self.network, self.coupling, self.example = network, coupling, example_inputs
        self.shapes = shapes_of(network)
        self.explicit: dict[Place, int] = {}
        self._built: dict[tuple[object, ...], Shapes | None] = {}
        named = block_sets(coupling)
        alone = [(name,) for name in coupling.widths if not any(name in names for names in named)]
        self.layers: list[tuple[str, ...]] = [*named, *alone]

    def run(self) -> StockWidths:
        self.explicit = self._implied()
        excluded: dict[str, str] = {}
        bundles: dict[tuple[str, ...], tuple[Place, ...]] = {}
        for layer in sorted(self.layers, key=self._parameters, reverse=True):
            if any(layer[0] in bundle for bundle in bundles):
                continue
            found = self._bundle(layer, {name for bundle in bundles for name in bundle}, self._ratio(layer))
            if isinstance(found, str):
                excluded.update(dict.fromkeys(layer, found))
                continue
            bundle, places = found
            step = self._step({**bundles, bundle: places}, bundle)
            if step is None:
                excluded.update(dict.fromkeys(layer, "the configuration refuses it together with other widths"))
                continue
            bundles[bundle] = places
            self.steps[bundle[0]] = step
            for name in bundle:
                excluded.pop(name, None)
        for name, why in excluded.items():
            log.info("%s keeps its size: %s", name, why)
        return self._stock(bundles, excluded)

    def stated(self, plan: Plan) -> Any:
        """The configuration that states the widths of `plan`, or why there is none."""
        shares = {name: Fraction(plan.widths[name], size) for name, size in self.coupling.widths.items()}
        for layer in self.layers:
            if len({shares[name] for name in layer}) > 1:
                return f"{layer[0]} and the same layer of other blocks have different widths, and it has one for all"
        self.explicit = self._implied()
        bundles: dict[tuple[str, ...], tuple[Place, ...]] = {}
        for layer in sorted(self.layers, key=self._parameters, reverse=True):
            used = {name for bundle in bundles for name in bundle}
            if layer[0] in used or shares[layer[0]] == 1:
                continue
            found = self._bundle(layer, used, shares[layer[0]])
            if isinstance(found, str):
                return f"{layer[0]}: {found}"
            bundle, places = found
            apart = [name for name in bundle if shares[name] != shares[layer[0]]]
            if apart:
                return f"{layer[0]} and {apart[0]} depend on the same numbers, and the plan cuts them differently"
            bundles[bundle] = places
        try:
            config = self._stock(bundles).configured(self.network.config, plan.widths)
            return differs(apply_plan(self.network, plan), config, self.example) or config
        except Exception as error:  # a constructor may refuse sizes in any way
            return said(error)

    @cached_property
    def steps(self) -> dict[str, int]:
        return {}

    def _stock(
        self, bundles: Mapping[tuple[str, ...], tuple[Place, ...]], excluded: Mapping[str, str] | None = None
    ) -> StockWidths:
        places = {bundle[0]: found for bundle, found in bundles.items()}
        sizes = {first: self.coupling.widths[first] for first in places}
        sets = tuple(bundle for bundle in bundles if len(bundle) > 1)
        return StockWidths(sets, places, sizes, dict(self.steps), self.explicit, excluded or {})

    def _parameters(self, layer: tuple[str, ...]) -> int:
        tensors = {item.tensor for name in layer for item in self.coupling.group(name).slices}
        return sum(torch.Size(self.shapes[name]).numel() for name in tensors if name in self.shapes)

    def built(self, scales: Mapping[Place, Fraction]) -> Shapes | None:
        """The shapes of the stock class with some numbers scaled; None where it cannot be built."""
        key = tuple(sorted(scales.items()))
        if key not in self._built:
            try:
                config = with_numbers(self.network.config, self.explicit, scales)
                self._built[key] = shapes_of(built_on_meta(self.network, config))
            except Exception as error:  # a constructor may refuse sizes in any way
                log.debug("%s: %s", key, said(error))
                self._built[key] = None
        return self._built[key]

    def _implied(self) -> dict[Place, int]:
        """Numbers that the configuration leaves open, where they can be stated without a change."""
        config, found = self.network.config, dict[Place, int]()
        values = {self.coupling.widths[name] * factor for name in self.coupling.widths for factor in (1, 2)}
        for place in places_in(config, type(None)):
            for value in sorted(values):
                trial = [shapes_or_none(self.network, {**found, place: v}) for v in (value, value + 1)]
                if trial[0] == self.shapes and trial[1] != self.shapes:
                    found[place] = value
                    break
        return found

    def _ratio(self, layer: tuple[str, ...]) -> Fraction | str:
        """A share of its units that `layer` can keep, about half where there is such a one; or why there is none."""
        size = self.coupling.widths[layer[0]]
        if size < 2:
            return "it has one unit"
        halves = (Fraction(count, size) for count in range(max(1, size // 2), size))
        fitting = (ratio for ratio in halves if all(self._fits(name, ratio) for name in layer))
        ratio = next(fitting, None) if size % 2 == 0 else max(fitting, default=None)
        return "it must keep all of its units" if ratio is None else ratio

    def _bundle(
        self, layer: tuple[str, ...], used: set[str], ratio: Fraction | str
    ) -> tuple[tuple[str, ...], tuple[Place, ...]] | str:
        """The groups that follow the numbers by which `layer` is cut to `ratio`, and where these stand; or why there
        are none."""
        if isinstance(ratio, str):
            return ratio
        mine = self._touched(layer)
        stated = with_numbers(self.network.config, self.explicit, {})
        places = [place for place in places_in(stated, (int, float)) if scaled_at(stated, place, ratio)]
        promising = [p for p in places if (b := self.built({p: ratio})) is None or self._changed_in(b) & mine]
        tried = ", ".join(".".join(place) for place in promising[:4])
        why = "no numbers of the configuration give these shapes" + (f" (tried {tried})" if tried else "")
        # The second may change no shape: how many heads there are of one hidden size.
        pairs = [(one, two) for one in promising for two in places if two != one]
        few = [*((one,) for one in promising), *pairs]
        for chosen in dict.fromkeys([*few, *(self._with_equals(stated, some, places, ratio) for some in few)]):
            built = self.built(dict.fromkeys(chosen, ratio))
            if built is None or not self._changed_in(built):
                continue
            for bundle in self._bundles(layer, used, built, ratio):
                if self._target(bundle, ratio) != built:
                    continue
                plan = self._plan(bundle, ratio)
                config = with_numbers(self.network.config, self.explicit, dict.fromkeys(chosen, ratio))
                why = differs(apply_plan(self.network, plan), config, self.example)
                if not why:
                    return bundle, chosen
                why = f"{', '.join('.'.join(place) for place in chosen)}: {why}"
        return why

    def _with_equals(
        self, stated: object, some: tuple[Place, ...], places: list[Place], ratio: Fraction
    ) -> tuple[Place, ...]:
        """`some` with all numbers that are the same ones: key-value heads are as many as heads, or fewer.

        Left out are those that change what tensors there are (numbers of layers).
        """
        values = {place: value_at(stated, place) for place in places}
        equal = [
            place
            for place in places
            if any(values[place] == values[one] for one in some)
            and ((built := self.built({place: ratio})) is None or built.keys() == self.shapes.keys())
        ]
        return tuple(sorted({*some, *equal}))

    def _bundles(
        self, layer: tuple[str, ...], used: set[str], built: Shapes, ratio: Fraction
    ) -> Iterator[tuple[str, ...]]:
        """`layer` with what has to follow, and with up to two, or all, other layers that have a part in what changed.

        Those have to follow whose units alone are a dimension that has changed.
        """
        changed = self._changed_in(built)
        others = [
            other
            for other in self.layers
            if other != layer and not used & set(other) and self._touched(other) & changed
            and all(self._fits(name, ratio) for name in other)
        ]  # fmt: skip
        same = [other for other in others if self.coupling.widths[other[0]] == self.coupling.widths[layer[0]]]
        needed = [other for other in others if any(self._alone_in(name, built) for name in other)]
        rest = [other for other in others if other not in needed]
        tried = [[*needed, *some] for count in range(3) for some in itertools.combinations(rest, count)]
        for some in [*tried, same, others]:
            yield tuple(itertools.chain(layer, *some))

    def _alone_in(self, name: str, built: Shapes) -> bool:
        """Whether a dimension that has changed is made of the units of this group alone."""
        variable, axes = self.coupling.variables[name], self.coupling.structure.tensors
        return any(
            built[item.tensor][item.dim] != self.shapes[item.tensor][item.dim]
            for item in self.coupling.group(name).slices
            if item.tensor in built and set(leaves(axes[item.tensor][item.dim])) == {variable}
        )

    def _fits(self, name: str, ratio: Fraction) -> bool:
        group = self.coupling.group(name)
        width = group.size * ratio
        return width.denominator == 1 and width >= group.least and width % group.multiple == 0

    def _touched(self, layer: tuple[str, ...]) -> set[str]:
        return {item.tensor for name in layer for item in self.coupling.group(name).slices}

    def _changed_in(self, built: Shapes) -> set[str]:
        return {name for name, shape in self.shapes.items() if built.get(name) != shape}

    def _plan(self, bundle: tuple[str, ...], ratio: Fraction) -> Any:
        return self.coupling.plan({name: range(int(self.coupling.widths[name] * ratio)) for name in bundle})

    def _target(self, bundle: tuple[str, ...], ratio: Fraction) -> Shapes:
        """The shapes of the network with every group of the bundle at this share of its size."""
        slicing = Slicing(self.coupling, self.coupling.masks(self._plan(bundle, ratio)))
        axes, aliases = self.coupling.structure.tensors, self.coupling.aliases
        return {
            name: tuple(slicing.size(axis) for axis in axes[aliases[name]]) if name in aliases else shape
            for name, shape in self.shapes.items()
        }

    def _step(self, bundles: Mapping[tuple[str, ...], tuple[Place, ...]], bundle: tuple[str, ...]) -> int | None:
        """The least step of the bundle's widths at which the configuration takes them beside all others."""
        draw, widths = random.Random(0), self.coupling.widths
        unit = smallest_unit([widths[name] for name in bundle])
        for step in _STEPS:
            if unit * step >= widths[bundle[0]]:
                return None
            self.steps[bundle[0]] = unit * step
            stock = self._stock(bundles)
            fine = [{first: widths[first] - self.steps[first] for first in stock.places}]
            for _ in range(_DRAWS):
                fine.append({f: draw.randrange(self.steps[f], widths[f] + 1, self.steps[f]) for f in stock.places})
            if all(self._accepted(stock, trial) for trial in fine):
                return unit * step
        self.steps.pop(bundle[0], None)
        return None

    def _accepted(self, stock: StockWidths, widths: Mapping[str, int]) -> bool:
        try:
            built_on_meta(self.network, stock.configured(self.network.config, widths))
        except Exception as error:  # a constructor may refuse sizes in any way
            log.debug("%s: %s", dict(widths), said(error))
            return False
        return True
