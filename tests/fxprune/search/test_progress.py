"""Progress: what is shown while a search runs, and that it can be off."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_search import EXAMPLE, FAST, make, negative_loss, run
from torch import nn

from fxprune import netadapt
from fxprune.errors import InputError
from fxprune.search.progress import Bars, Lines, Quiet, make_progress


class Lazy:
    """Batches that are made when they are asked for."""

    def __init__(self, make: Callable[[], Iterator[torch.Tensor]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.make()


def test_quiet_where_it_is_off_or_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_progress(False), Quiet)
    assert isinstance(make_progress(True), Lines)  # pytest's output is no terminal
    netadapt(make(), 0.5, example_inputs=EXAMPLE, config=FAST)
    out = capsys.readouterr()
    assert out.out == "" and out.err == ""


def test_shows_rounds_candidates_the_way_to_the_budget_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    monkeypatch.setattr("fxprune.api.make_progress", lambda wanted: Bars(console))

    def evaluate(model: object) -> float:
        return negative_loss(model)  # type: ignore[arg-type]

    result = run(evaluate=evaluate)
    text = shown.getvalue()
    assert "flops" in text and "(budget 50.0%)" in text and f"round {len(result.rounds)}" in text
    assert result.rounds[0].candidates[0].group in text and "left" in text


def test_where_there_is_no_terminal_each_round_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fxprune.search.progress"):
        result = run(progress=True)
        lines = [record.getMessage() for record in caplog.records if record.name == "fxprune.search.progress"]
        assert len(lines) == len(result.rounds) > 2
        first, last = result.rounds[0], result.rounds[-1]
        share = first.achieved["flops"] / result.start["flops"]
        way = f"flops at {share:.1%} of the start (budget 50.0%)"
        said = f"round 1: {first.chosen_group}, score {first.score:.6g}, {way}, about "
        assert lines[0].startswith(said)
        assert lines[-1].startswith(f"round {last.round}: ") and lines[-1].endswith("about 0 s left")
        caplog.clear()
        run(config=FAST.replace(netadapt_max_rounds=1))
        assert not [record for record in caplog.records if record.name == "fxprune.search.progress"]  # progress=False


def test_a_line_says_how_far_a_round_is_also_inside_a_candidate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.api.make_progress", lambda wanted: Lines(every=0.05))

    def evaluate(model: object) -> float:
        time.sleep(0.2)
        return 1.0

    config = FAST.replace(netadapt_max_rounds=1, netadapt_max_iter=0)
    with caplog.at_level(logging.INFO, logger="fxprune.search.progress"):
        result = run(evaluate=evaluate, train=None, config=config)
    lines = [record.getMessage() for record in caplog.records if record.name == "fxprune.search.progress"]
    count = sum(candidate.trained for candidate in result.rounds[0].candidates)
    between = [line for line in lines if "candidates done" in line]
    assert len(between) >= 2 * count and all(line.startswith("round 1: ") for line in between)
    assert {f"{done} of {count} candidates" in " ".join(between) for done in range(count)} == {True}
    assert any(line.startswith("evaluating the unpruned network, for 0 s; ") for line in lines)
    assert not any(thread.name == "fxprune progress" for thread in threading.enumerate())


def test_a_line_says_what_is_done_before_any_round(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(nn.Module):
        """Takes its time with batches, not with the example."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.06 if len(x) > 1 and not x.is_meta else 0.0)
            return self.last(self.first(x).relu())

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(5):
            time.sleep(0.06)
            yield torch.randn(4, 3)

    monkeypatch.setattr("fxprune.api.make_progress", lambda wanted: Lines(every=0.02))
    config = FAST.replace(netadapt_max_rounds=1, netadapt_max_iter=0, sweeps=0)
    with caplog.at_level(logging.INFO, logger="fxprune.search.progress"):
        netadapt(Slow(), 0.5, example_inputs=torch.randn(1, 3), calibration=list(batches()), config=config)
        netadapt(Slow(), 0.5, example_inputs=torch.randn(1, 3), calibration=Lazy(batches), config=config)
    lines = [record.getMessage() for record in caplog.records if record.name == "fxprune.search.progress"]
    assert any(line.startswith("reading calibration data, for ") for line in lines)
    assert any(re.match(r"observing calibration data: \d+ of 16 samples, for ", line) for line in lines)
    assert any(line.startswith("measuring what each group's width costs") for line in lines)
    assert not any(thread.name == "fxprune progress" for thread in threading.enumerate())


def test_no_line_is_left_behind_by_a_search_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.api.make_progress", lambda wanted: Lines(every=0.05))
    with pytest.raises(InputError):
        netadapt(nn.Linear(3, 2), 0.5, example_inputs="x")
    assert not any(thread.name == "fxprune progress" for thread in threading.enumerate())


def test_bars_say_what_is_done_before_any_round(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    bars = Bars(Console(file=shown, force_terminal=True, width=160))
    monkeypatch.setattr("fxprune.api.make_progress", lambda wanted: bars)
    run(progress=True, config=FAST.replace(netadapt_max_rounds=1))
    assert "building and proving the pruned network" in shown.getvalue()


def test_what_the_folder_will_take_is_said_before(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.INFO, logger="fxprune.search.progress"):
        result = run(progress=True, workdir=tmp_path)
        lines = [record.getMessage() for record in caplog.records if record.name == "fxprune.search.progress"]
        taken = sum(path.stat().st_size for path in tmp_path.glob("round-*/weights.safetensors"))
        said = re.search(r" will take about ([\d.]+) kB: the weights of (\d+) rounds", lines[0])
        assert said is not None and int(said[2]) == pytest.approx(len(result.rounds), abs=1)
        assert float(said[1]) * 1e3 == pytest.approx(taken, rel=0.3)
        caplog.clear()
        run(progress=True, workdir=tmp_path)
        assert "will take" not in caplog.text


def test_a_failed_candidate_is_shown() -> None:
    shown = io.StringIO()
    bars = Bars(Console(file=shown, force_terminal=True, width=160))
    result = run(config=FAST.replace(netadapt_max_rounds=1))
    bars._candidates = bars._bars.add_task("round 1", total=None, note="")
    bars.round_started(1, {}, 2)
    (record,) = result.rounds
    bars.candidate_done(record.candidates[0])
    assert bars._bars.tasks[0].completed == 1 and record.candidates[0].group in bars._bars.tasks[0].fields["note"]
