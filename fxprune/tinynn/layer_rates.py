"""Pruning rates by layer: the table `sparsity` of a configuration, written for people and read back as limits."""

from __future__ import annotations

import logging
import math

import numpy as np
from torch import nn

from fxprune.config.keys import NetAdaptConfig
from fxprune.problem.width_grids import Grid, layers_of, make_grids
from passes import Coupling, Plan

log = logging.getLogger(__name__)


def binding_rates(network: nn.Module, coupling: Coupling, config: NetAdaptConfig) -> dict[str, float]:
    """The table by group, without the rates that limit nothing.

    However it is written, and whether it is written at all: a search with the same limits is the same search, and may
    be continued. A table of nothing but zeros, as TinyNN's generate_config writes it, limits nothing either.
    """
    if not config.sparsity:
        return {}
    if not any(config.sparsity.values()):
        log.warning(
            "sparsity: every rate is 0, as TinyNN's generate_config writes the table; it is taken for no limit. "
            "Raise the rate of the layers that may be pruned to hold the others back."
        )
        return {}
    free = make_grids(network, coupling, config.replace(sparsity={}))
    held = make_grids(network, coupling, config)
    sizes = coupling.widths
    rates = {}
    for name, grid in free.items():
        least = held[name].least if name in held else sizes[name]
        if least != grid.least:
            rates[name] = (sizes[name] - least) / sizes[name]
    return rates


def layer_rates(network: nn.Module, coupling: Coupling, config: NetAdaptConfig) -> dict[str, float]:
    """The largest share of its units that each layer may lose under a configuration; 0 for one that is held or frozen.

    A group that is limited more than its layers, because they have other groups too, stands under its own name.
    """
    grids = make_grids(network, coupling, config)
    by_group = {group.name: _rate(group.size, grids.get(group.name)) for group in coupling.groups}
    layers = {group.name: layers_of(group) for group in coupling.groups}
    rates = dict.fromkeys(weighted_layers(network), 0.0)
    for group, names in layers.items():
        for name in names:
            rates[name] = max(rates.get(name, 0.0), by_group[group])
    for group, names in layers.items():
        if by_group[group] < min((rates[name] for name in names), default=1.0):
            rates[group] = by_group[group]
    return rates


def layer_shares(network: nn.Module, coupling: Coupling, plan: Plan) -> dict[str, float]:
    """The share of its outputs that each layer has lost under a plan."""
    sizes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    kept: dict[tuple[str, int], np.ndarray] = {}
    for group in coupling.groups:
        gone = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
        for item in group.slices:
            if item.role in ("output", "carried"):
                mask = kept.setdefault((item.tensor, item.dim), np.ones(sizes[item.tensor][item.dim], bool))
                mask[item.index[gone].ravel()] = False
    left: dict[str, float] = {}
    for (tensor, _), mask in kept.items():  # a transposed convolution in groups has its outputs in two dimensions
        left[tensor] = left.get(tensor, 1.0) * mask.mean()
    shares = dict.fromkeys(weighted_layers(network), 0.0)
    for tensor, share in left.items():
        layer = tensor.rpartition(".")[0]
        shares[layer] = max(shares.get(layer, 0.0), 1 - float(share))
    return shares


def weighted_layers(network: nn.Module) -> list[str]:
    """The modules that hold a weight of two dimensions or more: convolutions, linear layers and their like."""
    return [
        name.removesuffix(".weight")
        for name, parameter in network.named_parameters()
        if name.endswith(".weight") and parameter.dim() > 1
    ]


def _rate(size: int, grid: Grid | None) -> float:
    """What a person writes: four digits, rounded up so that it allows the least width."""
    if grid is None:
        return 0.0
    exact = (size - grid.least) / size
    rounded = math.ceil(exact * 1e4) / 1e4
    return rounded if rounded < 1 else exact
