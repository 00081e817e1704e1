"""Tensors of a model that its example inputs do not use: which groups they follow in the stock class, and their cut."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from fxprune.problem.config_numbers import Shapes
from passes import Plan
from passes.graph.module_copies import like

Followed = dict[str, dict[int, str]]  # of each such parameter the dimensions, each with the group whose units it keeps


def followed(
    before: Shapes, after: Shapes, unused: frozenset[str], sizes: Mapping[str, int], share: Fraction
) -> Followed | None:
    """Which dimensions of unused tensors follow which group, where the groups of `sizes` are cut to `share`.

    None where such a dimension is as long as no group, or as several: nothing in the network says which units it has.
    """
    made: Followed = {}
    for name in sorted(unused & before.keys() & after.keys()):
        for dim, (size, left) in enumerate(zip(before[name], after[name], strict=False)):
            if size == left:
                continue
            groups = [group for group, width in sizes.items() if width == size and size * share == left]
            if len(groups) != 1:
                return None
            made.setdefault(name, {})[dim] = groups[0]
    return made


def cut_unused(model: nn.Module, follow: Followed, plan: Plan) -> None:
    """Cut these parameters of `model` to the units that the plan keeps of their groups, in place."""
    for name, dims in follow.items():
        path, _, leaf = name.rpartition(".")
        owner: Any = model.get_submodule(path)
        tensor = data = getattr(owner, leaf)
        for dim, group in dims.items():
            if data.shape[dim] == plan.sizes[group]:
                data = data.detach().index_select(dim, torch.tensor(plan.keep[group], device=data.device))
        setattr(owner, leaf, like(tensor, data))
