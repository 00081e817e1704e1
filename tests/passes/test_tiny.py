"""Tiny networks of every kind: each is pruned exactly or left alone with a reason, and its coverage cannot regress."""

from __future__ import annotations

import pytest
from oracle import examine
from tiny import TABLE


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["first share", "others"])
@pytest.mark.parametrize("name", TABLE)
def test_exact_or_left_alone(name: str, first: bool) -> None:
    row = TABLE[name]
    finding = examine(row.make(), row.inputs(), row.shares[:1] if first else row.shares[1:])
    assert finding.groups == row.groups, "coverage changed; if it grew, state the new groups in the table"
    if row.why:
        reasons = {frozen.reason for frozen in finding.coupling.frozen}
        assert any(row.why in reason for reason in reasons), f"{row.why!r} is not among {sorted(reasons)}"
