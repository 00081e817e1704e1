"""Progress: what is shown while a search runs, and that it can be off."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from small_search import EXAMPLE, FAST, make, negative_loss, run

from fxprune import netadapt
from fxprune.search.progress import Bars, Quiet, make_progress


def test_quiet_where_it_is_off_or_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_progress(False), Quiet)
    assert isinstance(make_progress(True), Quiet)  # pytest's output is no terminal
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


def test_a_failed_candidate_is_shown() -> None:
    shown = io.StringIO()
    bars = Bars(Console(file=shown, force_terminal=True, width=160))
    result = run(config=FAST.replace(netadapt_max_rounds=1))
    bars._candidates = bars._bars.add_task("round 1", total=None, note="")
    bars.round_started(1, {}, 2)
    (record,) = result.rounds
    bars.candidate_done(record.candidates[0])
    assert bars._bars.tasks[0].completed == 1 and record.candidates[0].group in bars._bars.tasks[0].fields["note"]
