"""Fewer rows than columns: the same weights from the rows themselves as from their sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passes.repair.closed_form import solve
from passes.statistics import Moments
from passes.statistics.sites import Kept


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_few_rows_give_what_their_sums_give(biased: bool, held: bool) -> None:
    torch.manual_seed(0)
    seen = torch.randn(34, 200, dtype=torch.float64) @ torch.randn(200, 200, dtype=torch.float64) / 10 + 1
    moments, columns = Moments(1, 200), np.ones((1, 200), dtype=bool)
    moments.add(seen[None, :16])
    moments.add(seen[None, 16:24], 2.0)
    if held:
        moments.hold(seen[None, 24:], torch.Generator().manual_seed(0))
    columns[0, ::3] = False
    kept, weight = Kept(np.ones(1, dtype=bool), np.ones((1, 7), dtype=bool), columns), torch.randn(1, 7, 200)
    few = solve(weight, moments, kept, biased)
    assert moments.rows() is not None and few.ridge is not None
    assert torch.allclose(moments.rows().T @ moments.rows(), moments.matrix(), atol=1e-9)
    moments.sum_up()
    assert moments.rows() is None
    summed = solve(weight, moments, kept, biased)
    assert few.ridge == summed.ridge and few.after == pytest.approx(summed.after, abs=1e-7)
    assert torch.allclose(few.weight, summed.weight, atol=1e-4) and torch.allclose(few.shift, summed.shift, atol=1e-4)


@pytest.mark.parametrize("biased", [True, False])
def test_many_outputs_are_solved_some_at_a_time(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    moments, columns = Moments(1, 12), np.ones((1, 12), dtype=bool)
    seen = torch.randn(300, 12) @ torch.randn(12, 12) + 1
    moments.add(seen[None, :200])
    moments.hold(seen[None, 200:], torch.Generator().manual_seed(0))
    columns[0, ::4] = False
    rows = np.ones((1, 50), dtype=bool)
    rows[0, 3] = False
    kept, weight = Kept(np.ones(1, dtype=bool), rows, columns), torch.randn(1, 50, 12)
    whole = solve(weight, moments, kept, biased, (1e-3,))
    monkeypatch.setattr("passes.repair.closed_form._MOST", 12 * 7)
    lots = solve(weight, moments, kept, biased, (1e-3,))
    assert lots.weight.shape == whole.weight.shape and lots.weight.dtype == torch.float32
    assert torch.allclose(lots.weight.double(), whole.weight, atol=1e-5)
    assert torch.allclose(lots.shift, whole.shift) and lots.ridge == whole.ridge
    assert (lots.before, lots.after) == pytest.approx((whole.before, whole.after))
