"""A file that is written of the graph of a module is compared with the module, at the batches that it asks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from written_source import imported

from fxprune.exporters import ExportError, export

X = torch.randn(2, 4)


class Net(nn.Module):
    """Two layers, and what `last` makes of the input and the output."""

    def __init__(self, last: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Linear(4, 16), nn.Linear(16, 3), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x, self.b(torch.relu(self.a(x))))


def halved_above(x: Tensor, y: Tensor) -> Tensor:
    return y / 2 if x.shape[0] > 4 else y


def plain_for_one(x: Tensor, y: Tensor) -> Tensor:
    return y.squeeze(0) if x.shape[0] == 1 else y


def only_small(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[0] > 64:
        raise ValueError("too many")
    return y


def by_length(x: Tensor, y: Tensor) -> Tensor:
    return y / 2 if x.shape[1] > 4 else y


@pytest.mark.filterwarnings("ignore::passes.errors.SpecialisedWarning")
@pytest.mark.parametrize(
    ("last", "reason"),
    [(halved_above, "asks for the batch size"), (plain_for_one, "batch of the example"), (only_small, None),
     (by_length, None)],
)  # fmt: skip
def test_branches_on_the_batch_size(
    last: Callable[[Tensor, Tensor], Tensor], reason: str | None, tmp_path: Path
) -> None:
    net = Net(last).eval()
    report = export(net, X, tmp_path / "net.py")
    assert report.dynamic_batch is (reason is None) and (reason or "") in (report.static_reason or "")
    assert report.batch_sizes == ((2, 3) if reason is None else (2,))
    assert torch.equal(imported(tmp_path / "net.py").load()(X), net(X))


def test_what_the_graph_was_captured_for_is_in_the_notes(tmp_path: Path) -> None:
    def graded(x: Tensor, y: Tensor) -> Tensor:
        return y + 1 if torch.is_grad_enabled() else y

    with pytest.warns(UserWarning, match="the grad mode that it was captured in"):
        report = export(Net(graded).eval(), X, tmp_path / "net.py")
    assert any("the grad mode that it was captured in" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore::passes.errors.SpecialisedWarning")
@pytest.mark.parametrize("suffix", [".py", ".pt2"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "last",
    [
        lambda x, y: y * (torch.rand(1) > 0.5),
        lambda x, y: y + torch.rand_like(y),
        lambda x, y: y * random.random(),
        lambda x, y: y * float(np.random.rand() > 0.5),
    ],
)
def test_random_draws_are_refused(
    last: Callable[[Tensor, Tensor], Tensor], seed: int, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    with pytest.raises(ExportError, match="gives another output each time"):
        export(Net(last).eval(), X, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::passes.errors.SpecialisedWarning")
def test_draws_that_nothing_depends_on_are_none(tmp_path: Path) -> None:
    def drawn(x: Tensor, y: Tensor) -> Tensor:
        torch.rand(1)
        return y

    assert export(Net(drawn).eval(), X, tmp_path / "net.py").dynamic_batch


@pytest.mark.parametrize("suffix", [".py", ".pt2", ".onnx"])
def test_the_random_state_is_kept(suffix: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    before = torch.get_rng_state()
    export(net, X, tmp_path / f"net{suffix}")
    assert torch.equal(torch.get_rng_state(), before)
