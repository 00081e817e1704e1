"""`finetune` in two processes: as one process with the batches of both, and the same in both."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from fxprune import finetune, netadapt
from fxprune.errors import InputError

RANKS = 2


class Branched(nn.Module):
    """The second branch is for positive inputs alone: in one process it may have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        if x[0, 0] > 0:
            y = y + self.second(y)
        return self.head(y)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3)).double()


def batches(rank: int | None) -> list[tuple[Tensor, Tensor]]:
    """Three batches of eight; of one process its half of each."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(3):
        x, y = torch.randn(8, 6, generator=generator).double(), torch.randint(3, (8,), generator=generator)
        x[:4, 0], x[4:, 0] = x[:4, 0].abs(), -x[4:, 0].abs()
        part = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        made.append((x[part], y[part]))
    return made


def trained(network: nn.Module, data: Any, **options: Any) -> Any:
    chosen: dict[str, Any] = {"epochs": 2, "lr": 0.1, "progress": False, **options}
    return finetune(network, data, **chosen)


def halves(rank: int) -> Any:
    torch.manual_seed(rank)  # each process has weights of its own; those of the first count
    return trained(plain(), batches(rank), evaluate=lambda network: float(rank))


def with_norms(rank: int) -> Any:
    torch.manual_seed(rank)
    return trained(normed(), batches(rank))


def with_branches(rank: int) -> Any:
    torch.manual_seed(0)
    return trained(Branched().double(), batches(rank))


def uneven(rank: int) -> Any:
    return trained(plain(), batches(rank)[: 2 + rank])


def of_other_sizes(rank: int) -> Any:
    return trained(nn.Linear(6, 3 + rank).double(), batches(rank))


def _process(rank: int, port: int, job: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=RANKS, rank=rank)
    try:
        tuned = job(rank)
        found: Any = (tuned.model.state_dict(), tuned.losses, tuned.scores, tuned.epoch)
    except InputError as error:
        found = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def in_processes(job: Callable[[int], Any], folder: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (port, job, str(folder)), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("job", [halves, with_norms, with_branches])
def test_both_end_with_the_same_network(job: Callable[[int], Any], tmp_path: Path) -> None:
    (first, *said), (second, *also_said) = in_processes(job, tmp_path)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert said == also_said
    if job is halves:  # the mean of the gradients of two halves is the gradient of the whole
        torch.manual_seed(0)
        alone = trained(plain(), batches(None), evaluate=lambda network: 0.5)
        for name, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(first[name], tensor, rtol=1e-10, atol=1e-12)
        assert said[0] == pytest.approx(alone.losses) and said[1] == (0.5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "expected"),
    [(uneven, "different numbers of batches"), (of_other_sizes, "processes 0 and 1 hold different networks")],
)
def test_what_would_part_them_is_an_error_in_both(job: Callable[[int], Any], expected: str, tmp_path: Path) -> None:
    assert all(isinstance(found, str) and expected in found for found in in_processes(job, tmp_path))


@pytest.mark.parametrize("count", [1, 2])
def test_processes_that_each_search_on_their_own_are_told_so(
    count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fxprune.api.processes", lambda: count)
    choices: tuple[dict[str, Any], ...] = ({}, {"evaluate": lambda network: 0.0})
    for functions in choices:
        with caplog.at_level(logging.WARNING, "fxprune.api"):
            netadapt(plain(), 0.7, example_inputs=torch.ones(2, 6).double(), progress=False, **functions)
        told = [record for record in caplog.records if "torch.distributed runs 2 processes" in record.getMessage()]
        assert len(told) == (count == 2 and bool(functions))
