"""Tiny networks of every kind: each is pruned exactly or left alone with a reason, and its coverage cannot regress."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import examine
from tiny import TABLE

from passes import Coupling


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["first share", "others"])
@pytest.mark.parametrize("name", TABLE)
def test_exact_or_left_alone(name: str, first: bool) -> None:
    row = TABLE[name]
    finding = examine(row.make(), row.inputs(), row.shares[:1] if first else row.shares[1:])
    assert finding.groups == row.groups, "coverage changed; if it grew, state the new groups in the table"
    units_never_share_a_position(finding.coupling, may=name == "OuterProduct")
    if row.why:
        reasons = {frozen.reason for frozen in finding.coupling.frozen}
        assert any(row.why in reason for reason in reasons), f"{row.why!r} is not among {sorted(reasons)}"


def units_never_share_a_position(coupling: Coupling, may: bool) -> None:
    """may: positions (i, j) and (j, i) belong to both units."""
    for group in coupling.groups:
        assert group.slices and group.size > 1
        for item in group.slices:
            assert item.index.dtype == np.int64 and item.index.shape[0] == group.size
            rows = [np.unique(row) for row in item.index]
            assert all(len(row) == item.index.shape[1] for row in rows), f"{group.name} {item.tensor}"
            assert may or len(np.unique(item.index)) == item.index.size
            assert item.role in ("output", "input", "scale", "other", "carried")
