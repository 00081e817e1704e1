"""One copy of a module serves all runs of an analysis, and one run may try other sizes and cut widths at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_law import proven
from torch import Tensor, nn

from passes import apply_plan, couple, verify
from passes.trial.module_trial import Trial

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

    def pieces(self, x: Tensor) -> int:
        return 16

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.first(x))
        pieces = x.reshape(x.shape[0], self.pieces(x) - features.shape[1], -1).amax(2).sum(1, keepdim=True)
        return self.second(features).mean((2, 3)) * pieces


class InPiecesByHeight(InPieces):
    def pieces(self, x: Tensor) -> int:
        return x.shape[2] + 8


class OnAGrid(Convolutions):
    """As large as a pruned size says, and no output tells how large."""

    def size(self, x: Tensor) -> int:
        return 16

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.first(x))
        size = self.size(x) - features.shape[1]
        return F.interpolate(self.second(features), size=(size, size)).amax((2, 3))


class OnAGridByHeight(OnAGrid):
    def size(self, x: Tensor) -> int:
        return x.shape[2] + 8


def test_what_a_run_leaves_in_a_module_is_gone_before_the_next():
    module = Remembers()
    coupling = couple(module, X)
    assert coupling.widths == {"first": 8} and module.seen == []


def runs(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[bool]]:
    """The coupling, and for each look at other sizes whether the cut module was run there at once."""
    found: list[bool] = []
    original = Trial.runs_at

    def watched(*args: Any) -> bool:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(Trial, "runs_at", watched)
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
def test_a_number_that_a_pruned_size_gives_keeps_its_old_value(kind, monkeypatch):
    module = kind().eval()
    coupling, at_once = runs(module, monkeypatch)
    assert at_once == [False] and coupling.widths == {"first": 8}, "at other widths it does not run, or gives less"
    for kept in (range(3), range(1, 8)):
        plan = coupling.plan({"first": kept})
        assert len(verify(module, apply_plan(module, plan), plan, X).sizes) == 4, "both lengths and two batches"


@pytest.mark.parametrize("kind", [InPiecesByHeight, OnAGridByHeight])
def test_a_number_of_a_pruned_size_and_one_of_the_inputs_has_no_old_value(kind: type[nn.Module]) -> None:
    coupling = couple(kind().eval(), X)
    assert coupling.widths == {} and any("follow" in frozen.why.text for frozen in coupling.frozen)


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


class Merged(nn.Module):
    """Heads are merged into the width of the input, which is another group."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.inner, self.merge = 3, nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        by_head = self.inner(x).reshape(n, length, self.heads, -1).tanh()
        return self.merge(by_head.reshape(n, length, width))


@pytest.mark.parametrize("width", [24, 12, 8])
def test_a_number_that_has_moved_already_is_stated_whole(width: int) -> None:
    net, x = nn.Sequential(nn.Linear(5, 24), Merged(), nn.Linear(24, 3)).eval(), torch.randn(2, 7, 5)
    coupling = couple(net, x)
    assert sorted(coupling.widths.values()) == [3, 8, 24, 24]
    assert coupling.module is not None and any(literal.absolute for literal in coupling.module.literals)
    heads, size = (next(name for name, units in coupling.widths.items() if units == wide) for wide in (3, 8))
    plan = coupling.plan({heads: [0, 2], size: range(4), coupling.groups[0].name: range(width)})
    verify(net, apply_plan(net, plan), plan, x)
