"""One copy of a module serves all runs of an analysis, and one run may try other sizes and cut widths at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_law import proven
from torch import Tensor, nn

from passes import couple
from passes.trial import module_groups

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Convolutions(nn.Module):
    """Two convolutions, and what a test does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(F.relu(self.first(x)))).mean((2, 3))

    def between(self, x: Tensor) -> Tensor:
        return x


class Remembers(Convolutions):
    """Results of earlier calls would be stacked with this one's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def between(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack(self.seen).sum(0)


class WiderImages(Convolutions):
    """Another program where images are large."""

    def between(self, x: Tensor) -> Tensor:
        return x.flip(1) if x.shape[-1] > 6 else x


class Strided(Convolutions):
    """Whether reshape copies depends on the batch."""

    def between(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(x.shape[1], -1).reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


class InPieces(Convolutions):
    """Into how many pieces the image is cut is computed from a size that may be pruned; the image makes up for it."""

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.first(x))
        pieces = x.reshape(x.shape[0], 16 - features.shape[1], -1).amax(2).sum(1, keepdim=True)
        return self.second(features).mean((2, 3)) * pieces


class OnAGrid(Convolutions):
    """As large as a pruned size says, and no output tells how large."""

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.first(x))
        size = 16 - features.shape[1]
        return F.interpolate(self.second(features), size=(size, size)).amax((2, 3))


def test_what_a_run_leaves_in_a_module_is_gone_before_the_next():
    module = Remembers()
    coupling = couple(module, X)
    assert coupling.widths == {"first": 8} and module.seen == []


def runs(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[bool]]:
    """The coupling, and for each look at other sizes whether the cut module was run there at once."""
    found: list[bool] = []
    original = module_groups._runs_at_other_sizes

    def watched(*args: Any) -> bool:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(module_groups, "_runs_at_other_sizes", watched)
    return couple(module, X), found


def test_other_sizes_and_cut_widths_are_tried_in_one_run(monkeypatch):
    coupling, at_once = runs(Convolutions(), monkeypatch)
    assert at_once == [True] and coupling.widths == {"first": 8} and coupling.module.specialised == ()


def test_a_branch_on_a_size_is_found_by_runs_of_their_own(monkeypatch):
    coupling, at_once = runs(WiderImages(), monkeypatch)
    assert at_once == [False]
    assert any("other sizes" in sentence for sentence in coupling.module.specialised)


def test_a_copy_that_a_stride_needs_is_no_other_program(monkeypatch):
    coupling, _ = runs(Strided(), monkeypatch)
    assert coupling.widths == {"first": 8} and coupling.module.specialised == ()


@pytest.mark.parametrize("kind", [InPieces, OnAGrid])
def test_a_length_that_a_pruned_size_gives_is_not_taken_for_one_of_the_inputs(kind, monkeypatch):
    module = kind().eval()
    coupling, at_once = runs(module, monkeypatch)
    assert at_once == [False] and coupling.widths == {}, "at the second trial's widths it does not run, or gives less"
    assert any("follow" in frozen.why.text for frozen in coupling.frozen)


class Positions(nn.Module):
    """Heads by an attribute, learned positions by a buffer of places, and a condition on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.into, self.out = 3, nn.Linear(4, 12), nn.Linear(12, 3)
        self.register_buffer("places", torch.arange(64)[None])
        self.learned = nn.Embedding(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x) + self.learned(self.places[:, : x.shape[1]])
        x = x.view(*x.shape[:2], self.heads, -1).tanh().flatten(2)
        return self.out(x * 2 if x.shape[1] > 40 else x)


class KnownFlags(nn.Module):
    """Heads by an attribute, and flags that the program makes itself, as an index of what it then asks for values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.into, self.out = 3, nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        there = torch.arange(x.shape[1])[torch.ones(x.shape[1]) == 1]
        if not bool((there >= 0).all()):
            raise ValueError("a place below zero")
        x = self.into(x)[:, there]
        return self.out(x.view(*x.shape[:2], self.heads, -1).tanh().flatten(2))


@pytest.mark.parametrize("kind", [Positions, KnownFlags])
def test_what_one_run_says_of_a_tensor_is_not_left_to_the_next(kind: type[nn.Module]) -> None:
    proven(kind(), torch.randn(2, 7, 4), "into 3, into#2 4")
