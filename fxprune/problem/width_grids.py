"""How far each group may shrink: the configuration's steps, exclusions and per-layer rates as grids of widths."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import ConfigError
from passes import Coupling, Group

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """The widths that a group may be given: multiples of `step` from `least` up to below the width it has.

    The first multiple below a width that is none itself counts: 20 at step 8 may become 16 or 8.
    """

    group: str
    step: int
    least: int

    def below(self, width: int) -> range:
        """The widths, ascending, that a group of this width may be given."""
        return range(self.least, width, self.step)


def make_grid(group: str, size: int, *, step: int, min_size: int, max_prune: float = 1.0) -> Grid | None:
    """The grid of a group with `size` units originally; None if no smaller width is allowed.

    Never less than `min_size` units, never without `max_prune` (a share) of the original ones, never none.
    """
    least = max(1, min_size, math.ceil(size * (1 - max_prune) - 1e-9))
    least = math.ceil(least / step) * step
    return Grid(group, step, least) if least < size else None


def make_grids(
    network: nn.Module, coupling: Coupling, config: NetAdaptConfig, steps: Mapping[str, int] | None = None,
    fine: bool = False, last: bool = False,
) -> dict[str, Grid]:  # fmt: skip
    """The grid of each group that may shrink. `steps`: those that a measured table suggests, used by `step="auto"`.

    Where the configuration names no step and no least width, each group has its own (`default_step`). fine: about a
    64th of its size instead: calibration data tell neighbouring widths apart. last: every width, from the same least
    one: what the round that meets the budget may take, so that the budget is used.
    """
    groups = list(coupling.groups)
    layers = {group.name: layers_of(group) for group in groups}
    held = held_back(network, groups, layers, config)
    rates = rates_of(network, groups, layers, config)
    step, least = grid_of(config)
    open_ = config.step is None and config.netadapt_min_feature_size is None
    round_to = config.round_to or config.multiple or 1
    grids = {}
    for group in groups:
        if group.name in held:
            continue
        own = fine_step(group.size) if fine and open_ else default_step(group.size)
        if step == "auto":
            chosen = math.lcm((steps or {}).get(group.name) or own, round_to)
        elif last and open_:
            chosen = round_to
        elif fine and open_:
            chosen = math.lcm(own, round_to)
        else:
            chosen = int(step) if step is not None else own
        chosen = math.lcm(chosen, group.multiple)
        most = min(config.max_prune, rates[group.name])
        grid = make_grid(group.name, group.size, step=chosen, min_size=max(least or own, group.least), max_prune=most)
        if grid is not None:
            grids[group.name] = grid
    return grids


def default_step(size: int) -> int:
    """The largest power of two that is at most 8 and at most an eighth of the size; at least 1.

    So every group has at least eight widths to choose from, where it has eight units.
    """
    return 2 ** int(math.log2(max(1, min(8, size // 8))))


def fine_step(size: int) -> int:
    """The largest power of two that is at most 8 and at most a 64th of the size; at least 1."""
    return 2 ** int(math.log2(max(1, min(8, size // 64))))


def grid_of(config: NetAdaptConfig) -> tuple[int | str | None, int | None]:
    """The step and the least width that hold for every group; None: each group's own. The step may be "auto"."""
    least = config.netadapt_min_feature_size
    if config.step == "auto":
        return "auto", least
    round_to = config.round_to or config.multiple
    step = math.lcm(int(config.step), round_to or 1) if config.step is not None else round_to or least
    return step, least


def no_multiples(
    network: nn.Module, coupling: Coupling, config: NetAdaptConfig, widths: Mapping[str, int]
) -> list[str]:
    """The groups, with their widths, that are no multiple of `round_to`, though `exclude` does not name them."""
    round_to, groups = config.round_to or config.multiple or 1, list(coupling.groups)
    found = [group for group in groups if widths[group.name] % round_to]
    if not found:
        return []
    held = held_back(network, groups, {group.name: layers_of(group) for group in groups}, config)
    return [f"{group.name} ({widths[group.name]})" for group in found if group.name not in held]


def layers_of(group: Group) -> tuple[str, ...]:
    """The modules whose outputs the group's units are, by name."""
    producers = [item for item in group.slices if item.role in ("output", "carried")] or list(group.slices)
    return tuple(dict.fromkeys(item.tensor.rpartition(".")[0] for item in producers))


def held_back(
    network: nn.Module, groups: list[Group], layers: Mapping[str, tuple[str, ...]], config: NetAdaptConfig
) -> set[str]:
    """The groups that `exclude` or `exclude_ops` names, by group, layer, pattern or operator type."""
    modules = dict(network.named_modules())
    held = set()
    for key, patterns in (("exclude", config.exclude), ("exclude_ops", config.exclude_ops)):
        for pattern in patterns:
            found = {
                group.name
                for group in groups
                if any(matches(name, pattern) for name in (group.name, *layers[group.name]))
                or (key == "exclude_ops" and any(is_type(modules.get(name), pattern) for name in layers[group.name]))
            }
            if not found and not (key == "exclude_ops" and _known_type(pattern)) and not _frozen(network, pattern):
                raise unknown_layer(key, pattern, groups, layers)
            held |= found
    return held


def rates_of(
    network: nn.Module, groups: list[Group], layers: Mapping[str, tuple[str, ...]], config: NetAdaptConfig
) -> dict[str, float]:
    """The largest share that each group may lose, by the table `sparsity`: the least of its layers' rates.

    TinyNN writes layers with underscores for dots; such names count as the layer's own.
    """
    modules = [name for name, _ in network.named_modules() if name]
    known = {*modules, *(name for group in groups for name in (group.name, *layers[group.name]))}
    spelled = {name.replace(".", "_"): name for name in modules}
    table = dict(config.sparsity)
    default = table.pop("default", 1.0)
    for name in [name for name in table if name not in known]:
        if name not in spelled:
            raise unknown_layer("sparsity", name, groups, layers)
        table.setdefault(spelled[name], table.pop(name))
    rates = {}
    used = set()
    for group in groups:
        named = [name for name in (group.name, *layers[group.name]) if name in table]
        used |= set(named)
        rates[group.name] = min((table[name] for name in named), default=default)
    for name in set(table) - used:
        log.info("sparsity: %s is no layer whose outputs can be pruned; its rate has no effect", name)
    return rates


def matches(name: str, pattern: str) -> bool:
    """A name matches itself, a pattern as in file names, and every module that holds it."""
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def is_type(module: object, name: str) -> bool:
    return module is not None and type(module).__name__.lower() == name.lower()


def unknown_layer(key: str, pattern: str, groups: list[Group], layers: Mapping[str, tuple[str, ...]]) -> ConfigError:
    names = list(dict.fromkeys(name for group in groups for name in (group.name, *layers[group.name])))
    near = get_close_matches(pattern, names, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"prunable are {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")
    )
    return ConfigError(f"{key}: {pattern!r} matches no layer or group; {hint}")


def _known_type(name: str) -> bool:
    return any(name.lower() == known.lower() for known in dir(nn))


def _frozen(network: nn.Module, pattern: str) -> bool:
    """A layer of the network that is not prunable anyway (its last one, say) may be named too."""
    return any(matches(name, pattern) for name, _ in network.named_modules() if name)
