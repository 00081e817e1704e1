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
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.problem.config_numbers import (
    Place,
    Powers,
    Shapes,
    built_on_meta,
    implied_numbers,
    places_in,
    said,
    scaled_at,
    shapes_of,
    value_at,
    with_numbers,
)
from fxprune.problem.equal_widths import Sets, block_sets, smallest_unit
from fxprune.problem.stock_equality import differs
from fxprune.problem.unused_tensors import Followed, cut_unused, followed
from passes import Coupling, Plan, apply_plan
from passes.axes.expressions import leaves
from passes.transform.slicing import Slicing

log = logging.getLogger(__name__)
Bundles = dict[tuple[str, ...], Powers]  # groups in proportion, and the numbers that state them
PRESET = "huggingface"
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_FEW = 8  # widths of a group: with fewer it may be better off with another one's numbers
_DRAWS = 3  # of widths of all bundles together, at which the configuration must be accepted


@dataclass(frozen=True)
class StockWidths:
    """Which groups a configuration can state.

    sets: bundles of groups whose widths stay in proportion. places: for the first group of each, where the
    configuration holds numbers that are proportional to its width, or (power -1) to its inverse: the ratio to it of a
    width that stays. sizes: of these groups before. steps: what their widths must be multiples of. explicit: numbers
    that the configuration implied, and has to state now. excluded: groups that keep their size, and why. unused:
    parameters that the example inputs do not use, with the groups that they follow in the stock class.
    """

    sets: Sets = ()
    places: Mapping[str, Powers] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    explicit: Mapping[Place, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    unused: Followed = field(default_factory=dict)

    def configured(self, config: object, widths: Mapping[str, int]) -> Any:
        """A new configuration that states `widths`. Raises what its class raises for numbers that it refuses."""
        scales: dict[Place, Fraction] = {}
        for first, places in self.places.items():
            for place, power in places.items():  # heads are the product of key-value heads and of queries for each
                share = Fraction(widths[first], self.sizes[first])
                scales[place] = scales.get(place, Fraction(1)) * share**power
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
    if plan.removed_blocks:
        return "the plan removes residual blocks, and no number says which"
    search = _Search(network, coupling, example_inputs)
    if search.built({}) != search.shapes:
        return f"{type(network).__name__} built from its own config has other shapes than this model"
    return search.stated(plan)


def state_widths(model: nn.Module, stock: StockWidths, plan: Plan, example_inputs: object) -> None:
    """Write the widths of `plan` into the configuration of the cut model, and cut what the example inputs do not use.

    Raises InputError where the stock class of these widths computes something else.
    """
    cut_unused(model, stock.unused, plan)
    try:
        config = stock.configured(model.config, plan.widths)
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


def _same_list(one: Place, other: Place) -> bool:
    return one[-1].isdigit() and other[-1].isdigit() and one[:-1] == other[:-1]


class _Search:
    """Finds bundles one after the other; a group belongs to one at most."""

    def __init__(self, network: nn.Module, coupling: Coupling, example_inputs: object) -> None:
        self.network, self.coupling, self.example = network, coupling, example_inputs
        self.shapes = shapes_of(network)
        self.explicit: dict[Place, int] = {}
        self.followed: Followed = {}
        self._built: dict[tuple[object, ...], Shapes | None] = {}
        named = block_sets(coupling)
        alone = [(name,) for name in coupling.widths if not any(name in names for names in named)]
        self.layers = sorted([*named, *alone], key=self._parameters, reverse=True)

    def run(self) -> StockWidths:
        self.explicit = self._implied()
        excluded: dict[str, str] = {}
        bundles: Bundles = {}
        waiting = [(layer, False) for layer in self.layers]
        while waiting:
            layer, again = waiting.pop(0)
            if any(layer[0] in bundle for bundle in bundles):
                continue
            found = self._bundle(layer, bundles, self._ratio(layer))
            if isinstance(found, str):
                excluded.update(dict.fromkeys(layer, found))
                continue
            bundle, places = found
            step = self._step({**bundles, bundle: places}, bundle)
            if not again and (step or math.inf) * _FEW > self.coupling.widths[bundle[0]]:
                self.steps.pop(bundle[0], None)
                waiting.append((layer, True))  # it may follow the hidden size, whose multiple it has to be
            elif step is None:
                excluded.update(dict.fromkeys(layer, "the configuration refuses it together with other widths"))
            else:
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
        cut = [layer for layer in self.layers if shares[layer[0]] < 1]
        bundles, first, why = self._bundles_of(cut, shares), 0, ""
        while isinstance(bundles, str) and first < len(cut):  # one that takes a multiple of it along may be missing it
            first, why = first + 1, why or bundles
            bundles = self._bundles_of(sorted(cut, key=lambda layer: layer != cut[first - 1]), shares)
        if isinstance(bundles, str):
            return why
        if self.followed:
            return f"{', '.join(self.followed)}: not used by the example inputs, so that the plan leaves them whole"
        try:
            config = self._stock(bundles).configured(self.network.config, plan.widths)
            return differs(apply_plan(self.network, plan), config, self.example) or config
        except Exception as error:  # a constructor may refuse sizes in any way
            return said(error)

    def _bundles_of(self, layers: Sequence[tuple[str, ...]], shares: Mapping[str, Fraction]) -> Bundles | str:
        """What states these shares of their units for the layers, found in this order; or why there is no such."""
        bundles: Bundles = {}
        for layer in layers:
            if any(layer[0] in bundle for bundle in bundles):
                continue
            found = self._bundle(layer, bundles, shares[layer[0]])
            if isinstance(found, str):
                return f"{layer[0]}: {found}"
            bundle, places = found
            apart = [name for name in bundle if shares[name] != shares[layer[0]]]
            if apart:
                return f"{layer[0]} and {apart[0]} depend on the same numbers, and the plan cuts them differently"
            bundles[bundle] = places
        return bundles

    @cached_property
    def steps(self) -> dict[str, int]:
        return {}

    def _stock(self, bundles: Bundles, excluded: Mapping[str, str] | None = None) -> StockWidths:
        places = {bundle[0]: found for bundle, found in bundles.items()}
        sizes = {first: self.coupling.widths[first] for first in places}
        sets = tuple(bundle for bundle in bundles if len(bundle) > 1)
        kept = {name for bundle in bundles for name in bundle}
        unused = {
            name: {dim: group for dim, group in dims.items() if group in kept} for name, dims in self.followed.items()
        }
        return StockWidths(sets, places, sizes, dict(self.steps), self.explicit, excluded or {}, unused)

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
        """Numbers that can be stated without a change of the network; rotations may read one otherwise than layers."""
        values = {self.coupling.widths[name] * factor for name in self.coupling.widths for factor in (1, 2)}
        found = implied_numbers(self.network, self.shapes, values) if values else {}
        stated = ((place, with_numbers(self.network.config, {place: value}, {})) for place, value in found.items())
        return {place: found[place] for place, config in stated if not differs(self.network, config, self.example)}

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
        self, layer: tuple[str, ...], bundles: Bundles, ratio: Fraction | str
    ) -> tuple[tuple[str, ...], Powers] | str:
        """The groups that follow the numbers by which `layer` is cut to `ratio`, and where these stand; or why there
        are none. Groups of `bundles` keep their sizes."""
        if isinstance(ratio, str):
            return ratio
        mine, used = self._touched(layer), {name for bundle in bundles for name in bundle}
        stated = with_numbers(self.network.config, self.explicit, {})
        places = [place for place in places_in(stated, (int, float)) if scaled_at(stated, place, ratio)]
        promising = [p for p in places if (b := self.built({p: ratio})) is None or self._changed_in(b) & mine]
        tried = ", ".join(".".join(place) for place in promising[:4])
        why = ""
        # The second may change no shape: how many heads there are of one hidden size.
        pairs = [(one, two) for one in promising for two in places if two != one]
        few = [*((one,) for one in promising), *pairs]
        lists = [tuple(p for p in places if any(p == o or _same_list(p, o) for o in some)) for some in few]
        equals = [self._with_equals(stated, some, places, ratio) for some in few]
        for chosen in dict.fromkeys([*few, *lists, *equals]):
            powers = self._with_taken_back(dict.fromkeys(chosen, 1), bundles, ratio)
            scales = {place: ratio**power for place, power in powers.items()}
            built = self.built(scales)
            if built is None or not self._changed_in(built):
                continue
            for bundle in self._bundles(layer, used, built, ratio):
                follow = self._followed(bundle, built, ratio)
                if follow is None:
                    unread = self.coupling.unread & built.keys()
                    if self._target(bundle, ratio) | {name: built[name] for name in unread} == built:
                        return f"the example inputs do not use {min(unread)}; give such as lead to it, too"
                    continue
                other = self._other(bundle, follow, scales, ratio)
                if not other:
                    for name, dims in follow.items():
                        self.followed.setdefault(name, {}).update(dims)
                    return bundle, self._without_others(bundle, follow, powers, ratio)
                why = why or f"{', '.join('.'.join(place) for place in chosen)}: {other}"
        return why or "no numbers of the configuration give these shapes" + (f" (tried {tried})" if tried else "")

    def _followed(self, bundle: tuple[str, ...], built: Shapes, ratio: Fraction) -> Followed | None:
        """The unused tensors that follow the bundle where its cut has the shapes of `built`; None where it has not."""
        sizes = {name: self.coupling.widths[name] for name in bundle}
        follow = followed(self.shapes, built, self.coupling.unused, sizes, ratio)
        if follow is None or self._target(bundle, ratio) | {name: built[name] for name in follow} != built:
            return None
        return follow

    def _other(
        self, bundle: tuple[str, ...], follow: Followed, scales: Mapping[Place, Fraction], ratio: Fraction
    ) -> str:
        """Why the stock class with these numbers is another function than the network with its bundle cut, or ""."""
        config, plan = with_numbers(self.network.config, self.explicit, scales), self._plan(bundle, ratio)
        cut = apply_plan(self.network, plan)
        cut_unused(cut, follow, plan)
        return differs(cut, config, self.example)

    def _without_others(self, bundle: tuple[str, ...], follow: Followed, powers: Powers, ratio: Fraction) -> Powers:
        """`powers` without numbers that only have the same value, as those of tokens."""
        left = dict(powers)
        for place in list(powers) if len(powers) > 1 else ():
            fewer = {other: ratio**power for other, power in left.items() if other != place}
            built = self.built(fewer)
            alike = built is not None and self._followed(bundle, built, ratio) == follow
            if alike and not self._other(bundle, follow, fewer, ratio):
                del left[place]
        return left

    def _with_taken_back(self, powers: Powers, bundles: Bundles, ratio: Fraction) -> Powers:
        """`powers`, and the inverse of the numbers of all earlier bundles that these change: ratios to what shrinks."""
        built = self.built({place: ratio**power for place, power in powers.items()}) or {}
        made = dict(powers)
        for bundle, others in bundles.items():
            if built.keys() == self.shapes.keys() and any(self._alone_in(name, built) for name in bundle):
                made.update({place: made.get(place, 0) - power for place, power in others.items()})
        return {place: power for place, power in made.items() if power}

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

    def _step(self, bundles: Bundles, bundle: tuple[str, ...]) -> int | None:
        """The least step of the bundle's widths at which the configuration takes them beside all others."""
        draw, widths = random.Random(0), self.coupling.widths
        unit = smallest_unit([widths[name] for name in bundle])
        most = widths[bundle[0]] // unit
        for step in sorted({*_STEPS, *(step for step in range(1, most) if most % step == 0)}):
            if step >= most:
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
