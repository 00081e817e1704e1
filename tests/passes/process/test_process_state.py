"""What a public call may change of the process it puts back, after an error too, and one thread at a time."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from passes.process.state import exclusive, leaves_no_trace, state_kept


def _state() -> list[object]:
    return [
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.is_grad_enabled(),
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    ]  # fmt: skip


def _disturb() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch._C._set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.use_deterministic_algorithms(True)
    torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_as_before(fails: bool) -> None:
    @leaves_no_trace
    def call() -> int:
        _disturb()
        if fails:
            raise KeyError("asked for")
        return 3

    before = _state()
    if fails:
        with pytest.raises(KeyError):
            call()
    else:
        assert call() == 3
    assert _state() == before
    with state_kept():
        _disturb()
    assert _state() == before


def test_one_thread_at_a_time_which_may_enter_again() -> None:
    inside, most, turns = 0, 0, threading.Barrier(3)

    @leaves_no_trace
    def call(deep: bool = True) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if deep:
            call(False)
            with exclusive():
                most = max(most, inside)
        inside -= 1

    def work() -> None:
        turns.wait(timeout=60)
        for _ in range(50):
            call()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 2)
