"""Operands are cleared where removed units left something, and left alone where they are zero already."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passes import couple
from passes.axes.expressions import leaves
from passes.masked import cleared
from passes.masked.cleared import cleared_arguments

GONE = [1, 2, 5]


@pytest.mark.parametrize("piece", [1, 1 << 21])
@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), -0.0])
def test_only_what_is_not_zero_is_copied(value: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleared, "_PIECE", piece)
    coupling = couple(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 3))
    plan = coupling.plan({"0": [unit for unit in range(6) if unit not in GONE]})
    record = coupling.structure.records[-1]
    summed = {variable for axis in record.contracted for variable in leaves(axis)}
    bias, hidden, weight = torch.ones(2), torch.ones(4, 6), torch.ones(6, 2)
    hidden[:, GONE] = 0.0
    weight[GONE] = 0.0
    masks = coupling.masks(plan)
    assert cleared_arguments((bias, hidden, weight), {}, record, masks, summed) is None
    assert cleared_arguments((bias, hidden, weight + 1), {}, record, masks, set()) is None
    hidden[3, 5] = value
    found = cleared_arguments((bias, hidden, weight), {}, record, masks, summed)
    if value == 0:
        assert found is None
        return
    assert found is not None
    args, _ = found
    assert args[0] is bias and args[2] is weight and not args[1][:, GONE].any()
    assert args[1][:, [0, 3, 4]].eq(1).all()
    assert args[1] is not hidden and not hidden[3, 5].eq(0)
