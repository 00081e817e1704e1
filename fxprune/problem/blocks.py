"""Residual blocks as one more choice of a search: width 1, or 0 for a network without the branch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from fxprune.config.keys import NetAdaptConfig
from fxprune.problem.width_grids import Grid, is_type, matches
from passes import Coupling, Plan


def modules_of_block(coupling: Coupling, name: str) -> tuple[str, ...]:
    """The modules whose tensors go with a block, by name."""
    return tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor in coupling.blocks[name].tensors))


def block_grids(
    network: nn.Module, coupling: Coupling, config: NetAdaptConfig, scope: Collection[str] = ()
) -> dict[str, Grid]:
    """The grid of each block that may go: none that holds an excluded layer, or reaches out of the scope."""
    modules = dict(network.named_modules())

    def stays(name: str) -> bool:
        layers = modules_of_block(coupling, name)
        held = [layer for layer in (name, *layers) for p in (*config.exclude, *config.exclude_ops) if matches(layer, p)]
        typed = [layer for layer in layers for pattern in config.exclude_ops if is_type(modules.get(layer), pattern)]
        outside = [layer for layer in layers if scope and not any(f"{layer}.".startswith(f"{s}.") for s in scope)]
        return bool(held or typed or outside)

    return {name: Grid(name, 1, 0) for name in coupling.blocks if not stays(name)}


def groups_within(coupling: Coupling) -> dict[str, tuple[str, ...]]:
    """For each block the groups and blocks that go with it: all of their tensors are among its own."""
    found = {}
    for name, block in coupling.blocks.items():
        own = set(block.tensors)
        groups = [g.name for g in coupling.groups if all(item.tensor in own for item in g.slices)]
        inner = [other for other, b in coupling.blocks.items() if other != name and b.sum in block.calls]
        found[name] = (*groups, *inner)
    return found


def left_open(
    grids: Mapping[str, Grid], within: Mapping[str, Collection[str]], widths: Mapping[str, int]
) -> dict[str, Grid]:
    """The grids without those of what went with a block that has gone."""
    gone = {inner for name, inside in within.items() if widths[name] == 0 for inner in inside}
    return {name: grid for name, grid in grids.items() if name not in gone}


def plan_without(coupling: Coupling, keep: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]) -> Plan:
    """A plan that keeps units of groups, and leaves out the blocks whose width is 0."""
    return coupling.plan(keep, removed_blocks=[name for name in coupling.blocks if widths.get(name) == 0])
