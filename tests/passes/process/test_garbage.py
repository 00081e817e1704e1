"""Analyses give their memory back at once: with cycles it would stay until Python's collector has found them."""

from __future__ import annotations

import gc

import pytest
from tiny import TABLE

from passes import couple


@pytest.mark.parametrize(
    "name", ["Residuals", "AttentionScaledBySize", "WindowAttention", "HardCodedView", "EncoderLayers"]
)
def test_an_analysis_leaves_no_cycles(name: str) -> None:
    module, inputs = TABLE[name].make(), TABLE[name].inputs()
    couple(module, inputs)  # what is made once in a process stays
    gc.collect()
    gc.disable()
    try:
        found = couple(module, inputs)
        assert found.variables and gc.collect() == 0
    finally:
        gc.enable()
