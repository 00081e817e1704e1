"""A candidate withstood: whatever its functions raise, leave or wait for costs that candidate; a signal ends the
search."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss, run
from torch import nn

from fxprune import FineTune, NetAdaptResult, netadapt
from fxprune.errors import InputError, SearchError
from fxprune.training.candidate import said, train_candidate

TRAIN = FineTune(batches(), lr=0.05)
ONE_ROUND = FAST.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05)
LIMIT_S = 5.0  # far more than a candidate takes, also on a busy machine


class NoText(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Own(BaseException):
    """No Exception."""


def deeper() -> None:
    deeper()


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def warned() -> None:
    warnings.simplefilter("error")
    warnings.warn("a warning", UserWarning, stacklevel=1)


def stops_printing() -> None:
    sys.stdout = None  # type: ignore[assignment]
    raise ValueError("with no output left")


ACTS: dict[str, tuple[Callable[[], Any], str]] = {
    "sys.exit(0)": (lambda: sys.exit(0), "SystemExit: 0"),
    "GeneratorExit": (raises(GeneratorExit()), "GeneratorExit"),
    "KeyboardInterrupt that nobody pressed": (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "StopIteration": (raises(StopIteration(3)), "StopIteration: 3"),
    "own": (raises(Own("mine")), "Own: mine"),
    "MemoryError": (raises(MemoryError()), "MemoryError"),
    "RecursionError": (deeper, "RecursionError"),
    "no text": (raises(NoText()), r"NoText: \(its text cannot be had: __str__ raised RuntimeError\)"),
    "escapes": (raises(ValueError("\x1b[2J\ud800")), r"ValueError: \\x1b\[2J\\ud800"),
    "warning": (warned, "UserWarning: a warning"),
    "no output": (stops_printing, "ValueError: with no output left"),
}


def for_tail(act: Callable[[], Any]) -> Callable[[nn.Module, int], None]:
    """Trains, and acts for the candidate that shrinks `tail`."""

    def train(model: nn.Module, steps: int) -> None:
        if model.get_parameter("tail.weight").shape[0] < 18:
            act()
        TRAIN(model, steps)

    return train


@pytest.fixture(scope="module")
def whole() -> NetAdaptResult:
    return run(train=TRAIN, config=ONE_ROUND)


def assert_only_tail_failed(found: NetAdaptResult, whole: NetAdaptResult, words: str) -> None:
    (record,), (clean,) = found.rounds, whole.rounds
    errors = {c.group: c.error for c in record.candidates if c.error}
    assert set(errors) == {"tail"} and re.search(words, str(errors["tail"]))
    scores = [{c.group: c.score for c in r.candidates if c.group != "tail"} for r in (record, clean)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", ACTS)
def test_what_a_candidate_raises_costs_that_candidate(name: str, whole: NetAdaptResult) -> None:
    act, words = ACTS[name]
    assert_only_tail_failed(run(train=for_tail(act), config=ONE_ROUND), whole, words)
    assert sys.stdout is not None


@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_where_every_candidate_leaves_the_search_is_an_error(where: str) -> None:
    if where == "train":
        with pytest.raises(SearchError, match="every candidate failed.*SystemExit: 0"):
            run(train=lambda model, steps: sys.exit(0), config=ONE_ROUND)
    else:
        with pytest.raises(InputError, match="the unpruned network cannot be evaluated: evaluate: SystemExit"):
            run(evaluate=lambda model: sys.exit(0), config=ONE_ROUND)


def test_an_exception_is_one_line_that_can_be_printed_and_stored() -> None:
    def fail() -> None:
        raise ValueError("\x07\x9b1m red \ud83d \u202e")

    try:
        fail()
    except ValueError as error:
        text = said("train", error)
    assert text.endswith(f"(test_interruption.py:{fail.__code__.co_firstlineno + 1})")
    assert all(character.isprintable() for character in text) and text.encode()


@pytest.mark.parametrize("caught", [False, True])
def test_ctrl_c_ends_the_search_whatever_a_function_makes_of_it(caught: bool) -> None:
    def press(model: nn.Module, steps: int) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not caught:
                raise

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(train=press, config=ONE_ROUND)
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_callers_own_handler_of_a_signal_ends_the_search() -> None:
    """As a job scheduler sends SIGTERM, and a script makes `sys.exit` of it: no candidate failed, so none is recorded
    as failed."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(75)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit) as left:
            run(train=lambda model, steps: signal.raise_signal(signal.SIGTERM), config=ONE_ROUND)
        assert left.value.code == 75 and signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_is_not_missed_where_a_function_handles_it_itself() -> None:
    """Trainers put a handler of their own; what it raises cannot be told from what a function raises by itself."""

    def train(model: nn.Module, steps: int) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(train=train, config=ONE_ROUND)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_a_search_runs_too(whole: NetAdaptResult) -> None:
    found: list[NetAdaptResult] = []
    thread = threading.Thread(target=lambda: found.append(run(train=for_tail(lambda: sys.exit(0)), config=ONE_ROUND)))
    thread.start()
    thread.join()
    assert_only_tail_failed(found[0], whole, "SystemExit")


def waits() -> None:
    time.sleep(10_000)


def computes() -> None:
    while True:
        sum(range(1000))


def will_not_hear() -> None:
    try:
        waits()
    except BaseException:
        return


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.parametrize("act", [pytest.param(waits, marks=pytest.mark.slow), computes, will_not_hear])
def test_a_candidate_that_hangs_is_stopped_and_reported(act: Callable[[], None], whole: NetAdaptResult) -> None:
    config = ONE_ROUND.replace(candidate_time_limit=LIMIT_S, worker_retries=0)
    found = run(train=for_tail(act), config=config)
    assert_only_tail_failed(found, whole, r"it was stopped \(longer than candidate_time_limit=5 seconds\)")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and not signal.getitimer(signal.ITIMER_REAL)[0]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
def test_a_candidate_that_hung_once_is_tried_again(whole: NetAdaptResult, caplog: pytest.LogCaptureFixture) -> None:
    hung: list[int] = []

    def once() -> None:
        if not hung:
            hung.append(1)
            waits()

    found = run(train=for_tail(once), config=ONE_ROUND.replace(candidate_time_limit=LIMIT_S))
    assert history(found) == history(whole) and "attempt 1 of 2: it was stopped" in caplog.text


def hang_once(model: nn.Module, steps: int) -> None:
    """Waits or stops its process, as the environment says, where the file that it names is not there yet."""
    marker = Path(os.environ["FXPRUNE_TEST_MARKER"])
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        if os.environ["FXPRUNE_TEST_HANG"] == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        waits()
    TRAIN(model, steps)


@pytest.mark.parametrize("how", [pytest.param("waits", marks=pytest.mark.slow), "stopped"])
def test_a_worker_that_hangs_or_is_stopped_is_replaced(
    how: str, whole: NetAdaptResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FXPRUNE_TEST_MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("FXPRUNE_TEST_HANG", how)
    config = ONE_ROUND.replace(workers=2, candidate_time_limit=LIMIT_S)
    found = run(train=hang_once, config=config)
    assert history(found) == history(whole)
    assert "its worker was stopped (longer than candidate_time_limit=5 seconds); it is tried again" in caplog.text


def gains_a_buffer(model: nn.Module) -> None:
    model.register_buffer("average", torch.zeros(3))


def becomes_half(model: nn.Module) -> None:
    model.half()


@pytest.mark.parametrize(
    ("change", "words"),
    [(gains_a_buffer, "train changed the network itself: average is new"),
     (becomes_half, r"stem.weight has type torch.float16, had torch.float32")],
)  # fmt: skip
def test_weights_that_no_later_round_could_take_are_a_failed_candidate(change: Any, words: str) -> None:
    found = train_candidate(make(), 1, 0, lambda model, steps: change(model), negative_loss)
    assert found.score is None and re.search(words, str(found.error))


@pytest.mark.parametrize("seed", [-1, 1.5, 1.0, True, 2**32, 10**400, float("nan"), "1", None])
def test_a_seed_that_cannot_be_used_is_said_first(seed: Any) -> None:
    trained: list[int] = []
    for scope in (None, "tail"):
        with pytest.raises(InputError, match="netadapt: seed is .*expected an integer from 0 to 4294967295"):
            netadapt(
                make(), 0.5, example_inputs=EXAMPLE, train=lambda model, steps: trained.append(steps), scope=scope,
                evaluate=negative_loss, seed=seed, progress=False,
            )  # fmt: skip
    assert not trained


def test_the_largest_seed_is_one() -> None:
    assert run(seed=2**32 - 1, config=ONE_ROUND).rounds
