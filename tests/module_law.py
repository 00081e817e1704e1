"""The law of the module route: half of the units of every group removed, the class kept, masked equal to cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from passes import Certificate, Coupling, apply_plan, couple, verify

TOLERANCE = 1e-9


def halves(coupling: Coupling, seed: int = 0) -> dict[str, list[int]]:
    """A random half of the units of every group."""
    random = np.random.default_rng(seed)
    return {
        name: np.sort(random.permutation(size)[: size - size // 2]).tolist() for name, size in coupling.widths.items()
    }


def proven(module: nn.Module, inputs: Any, groups: str | None = None) -> tuple[nn.Module, Coupling, Certificate]:
    """The module cut by half, its coupling and its certificate; `groups` is what must be found, ``"conv1 8, fc 6"``."""
    module.eval()
    before = copy.deepcopy(module.state_dict())
    coupling = couple(module, inputs)
    if groups is not None:
        assert ", ".join(f"{g.name} {g.size}" for g in coupling.groups) == groups
    plan = coupling.plan(halves(coupling))
    cut = apply_plan(module, plan)
    certificate = verify(module, cut, plan, inputs, TOLERANCE)
    assert certificate.max_error <= TOLERANCE
    assert type(cut) is type(module) and cut is not module
    assert any("train mode" in label for label in certificate.inputs), "proven in one mode only"
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the user's module was changed"
    return cut, coupling, certificate
