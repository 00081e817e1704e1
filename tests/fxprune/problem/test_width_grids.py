"""What the widths of a search are multiples of, and what is said of those that are none."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fxprune import netadapt


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"round_to": 8}, "round_to: 8: left whole, at a width that is no multiple of it: 0 (20); "),
        ({"multiple": 8}, "round_to: 8: left whole, at a width that is no multiple of it: 0 (20); "),
        ({"round_to": 8, "exclude": ["0"]}, ""),
        ({"round_to": 4}, ""),
        ({}, ""),
    ],
)
def test_a_width_that_is_no_multiple_is_named_once(
    config: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    with caplog.at_level(logging.WARNING, "fxprune"):
        result = netadapt(model, 0.9, example_inputs=torch.ones(1, 4), config=config, progress=False)
    assert result.widths["2"] < 64 and (result.widths["0"] == 20 or not said)
    told = [record.getMessage() for record in caplog.records if "round_to" in record.getMessage()]
    assert len(told) == bool(said) and all(text.startswith(said) for text in told)
