"""A resource that is predicted and then measured: calibrated, stopped by the measured value, resumed as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, history, make, negative_loss

from fxprune import Budget, NetAdaptResult, netadapt
from fxprune.resources.models import MeasuredResource

SIZES = {"stem": 12, "branch.0": 14, "tail": 18}


@dataclass(frozen=True)
class Clock:
    """Milliseconds that are linear in the widths; the device is slower than the table thinks by `truth`."""

    truth: float = 1.0
    ratio: float = 1.0
    noise: float = 0.0
    name: str = "latency"
    unit: str = "ms"

    def value(self, widths: Mapping[str, Any] | None = None) -> Any:
        w = {**SIZES, **(widths or {})}
        return (w["stem"] * 3.0 + w["branch.0"] + w["tail"] * 2.0) * self.ratio

    def measure(self, network: torch.fx.GraphModule, example_inputs: Any) -> float:
        assert torch.equal(example_inputs, EXAMPLE)
        sizes = {name: network.get_parameter(f"{name}.weight").shape[0] for name in SIZES}
        return replace(self, ratio=self.truth).value(sizes)

    def calibrated(self, predicted: float, measured: float) -> Clock:
        return replace(self, ratio=self.ratio * measured / predicted)


def run(clock: Clock, **changes: Any) -> NetAdaptResult:
    given = {"example_inputs": EXAMPLE, "config": FAST, "evaluate": negative_loss, "progress": False}
    return netadapt(make(), Budget("latency", value=60.0), resources=[clock], **{**given, **changes})


def test_is_a_measured_resource() -> None:
    assert isinstance(Clock(), MeasuredResource)


def test_stops_by_what_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    right = run(Clock())
    wrong = run(Clock(truth=1.3))
    assert right.achieved["latency"] <= 60 and wrong.achieved["latency"] <= 60
    assert wrong.widths != right.widths
    first, *later = wrong.rounds
    assert first.measured["latency"] == pytest.approx(1.3 * first.predicted["latency"])
    assert first.achieved == first.measured
    for record in later:  # calibrated by the first
        assert record.measured["latency"] == pytest.approx(record.predicted["latency"])
    assert "off by 30 %" in caplog.text


def test_resumes_with_the_start_that_was_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run(Clock(truth=1.3))
    with caplog.at_level(logging.INFO):
        run(Clock(truth=1.3), workdir=tmp_path / "run")
    for name in ("round.json", "weights.safetensors"):
        (tmp_path / "run" / "round-0002" / name).unlink()
    caplog.clear()
    resumed = run(Clock(truth=1.3, ratio=1.001), workdir=tmp_path / "run")  # today's calibration differs a little
    assert resumed.start == whole.start and history(resumed) == history(whole)
    assert "another proposal" not in caplog.text


def test_several_budgets_with_a_measured_one() -> None:
    result = netadapt(
        make(), [Budget("latency", ratio=0.7), Budget("params", ratio=0.6)], resources=[Clock()],
        example_inputs=EXAMPLE, config=FAST, progress=False,
    )  # fmt: skip
    assert result.met and set(result.achieved) == {"latency", "params"} and "ms" in result.summary()
