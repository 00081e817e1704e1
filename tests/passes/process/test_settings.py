"""What a candidate changes in its process is put back, and workers compute under the settings of the search."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss, run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import FineTune, netadapt
from passes.process.settings import SETTINGS, computing_settings, put_settings, settings_kept, torch_threads

TRAIN = FineTune(batches(), lr=0.05)
CONFIG = FAST.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05)


def old_and_new_switches() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


LEAKS: dict[str, Callable[[], Any]] = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "autocast switch": lambda: torch.set_autocast_enabled("cpu", True),
    "threads": lambda: torch.set_num_threads(3),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "device region": lambda: torch.device("meta").__enter__(),
    "dispatch mode": lambda: FlopCounterMode(display=False).__enter__(),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "cudnn": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "precision, newer switch": old_and_new_switches,
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "denormals": lambda: torch.set_flush_denormal(True),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "math attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "numpy errors": lambda: np.seterr(all="raise"),
    "warnings": lambda: warnings.simplefilter("error"),
    "warnings region": lambda: warnings.catch_warnings(record=True).__enter__(),
    "environment": lambda: os.environ.update(FXPRUNE_TEST_LEAK="1"),
    "working folder": lambda: os.chdir("/"),
    "output": lambda: setattr(sys, "stdout", None),
    "recursion": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 500),
    "hook": lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "collector": gc.disable,
    "logging": lambda: logging.disable(logging.CRITICAL),
}


def state() -> dict[str, Any]:
    return {setting.name: setting.read() for setting in SETTINGS}


@pytest.fixture(scope="module")
def clean() -> list[tuple]:
    return history(run(train=TRAIN, config=CONFIG))


@pytest.mark.parametrize("name", LEAKS)
def test_what_is_left_changed_is_put_back(name: str) -> None:
    before = state()
    with settings_kept():
        LEAKS[name]()
        assert name == "precision, newer switch" or state() != before
    assert state() == before
    assert (torch.zeros(2) + 1).sum().item() == 2


@pytest.mark.parametrize(
    "name", ["threads", "default dtype", "default device", "autocast", "denormals", "dispatch mode"]
)
def test_no_candidate_sees_the_leak_of_another_nor_does_the_caller(name: str, clean: list[tuple]) -> None:
    def train(model: nn.Module, steps: int) -> None:
        TRAIN(model, steps)
        LEAKS[name]()

    before = state()
    assert history(run(train=train, config=CONFIG)) == clean
    assert state() == before


def test_no_candidate_sees_the_leak_of_one_that_failed(clean: list[tuple]) -> None:
    def train(model: nn.Module, steps: int) -> None:
        if model.get_parameter("tail.weight").shape[0] < 18:
            for name in ("threads", "default dtype", "default device", "warnings", "numpy errors"):
                LEAKS[name]()
            sys.exit(0)
        TRAIN(model, steps)

    (record,) = run(train=train, config=CONFIG).rounds
    scores = {c.group: c.score for c in record.candidates}
    assert {**{group: score for group, score, _ in clean[0][4]}, "tail": None} == scores


def test_the_settings_of_the_caller_hold_inside() -> None:
    """Put back are the caller's settings, not the defaults."""
    seen: set[Any] = set()

    def evaluate(model: nn.Module) -> float:
        seen.add((torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        score = negative_loss(model)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        return score

    with settings_kept():
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        run(evaluate=evaluate, config=CONFIG)
    assert seen == {(torch.float64, 1, True)}


class Scored:
    """An `evaluate` whose number tells the settings that it was called under."""

    def __call__(self, model: nn.Module) -> float:
        flags = (
            torch.get_default_dtype() == torch.float64, torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"), np.geterr()["over"] == "raise", torch.get_num_threads() == 2,
            torch.get_float32_matmul_precision() == "high", not torch.backends.mkldnn.enabled,
        )  # fmt: skip
        return float(sum(flag << place for place, flag in enumerate(flags)))


@pytest.mark.slow
def test_workers_compute_under_the_settings_of_the_search() -> None:
    def scores(workers: int) -> set[float | None]:
        config = CONFIG.replace(workers=workers)
        found = netadapt(make(), 0.5, example_inputs=EXAMPLE, evaluate=Scored(), config=config, progress=False)
        return {c.score for c in found.rounds[0].candidates if c.trained}

    with settings_kept(), torch_threads(2):
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_autocast_enabled("cpu", True)
        torch.set_float32_matmul_precision("high")
        torch.backends.mkldnn.enabled = False
        np.seterr(over="raise")
        assert scores(1) == scores(2) == {127.0}


def test_settings_that_compute_can_be_sent_and_put() -> None:
    sent = pickle.loads(pickle.dumps(computing_settings()))
    before = state()
    with settings_kept():
        for name in ("threads", "default dtype", "numpy errors", "autocast", "deterministic"):
            LEAKS[name]()
        put_settings(sent, "as they were")
        assert computing_settings() == sent
    assert state() == before


def test_a_setting_that_cannot_be_put_back_is_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    here = Path.cwd()
    try:
        os.chdir(gone)
        with settings_kept():
            torch.set_num_threads(2)
            os.chdir(here)
            gone.rmdir()
        assert "working folder cannot be put back" in caplog.text and torch.get_num_threads() == 1
    finally:
        os.chdir(here)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = computing_settings()
    yield
    assert computing_settings() == before
