"""Runs of costly networks are left out, or made on less, only where both networks make the very same calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes import Certificate, EquivalenceError, apply_plan, couple, verify
from passes.equality import streamed
from passes.verification import repeats

WHOLE = "the example"


@pytest.fixture(autouse=True)
def everything_is_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MACS", 1)
    monkeypatch.setattr(streamed, "SMALL", 8)


def proof(net: nn.Module, x: torch.Tensor, spoil: str = "") -> Certificate:
    coupling = couple(net.eval(), x)
    plan = coupling.plan({name: range(0, size, 2) for name, size in coupling.widths.items()})
    pruned = apply_plan(net, plan)
    if spoil:
        with torch.no_grad():
            pruned.state_dict()[spoil].view(-1)[-1] += 1e-3
    return verify(net, pruned, plan, x)


class Pooled(nn.Module):
    """Convolutions over an image of any size; `path` says what hangs on its size or on the mode."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.path = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 3, padding=1), path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        if self.path == "long" and x.shape[-1] > 40:
            y = torch.sigmoid(y)
        if self.path == "units" and y.numel() > 12 * 48 * 48 // 2:
            y = y * 1.5
        if self.path == "drop":
            y = F.dropout(y, 0.25, self.training)
        if self.path == "train" and self.training:
            y = torch.tanh(y)
        if self.path == "gradients" and torch.is_grad_enabled():
            y = y + 0.125
        return self.last(y).mean((2, 3))


X = torch.randn(1, 3, 48, 48)


def test_a_free_size_is_made_smaller_and_two_sizes_are_still_proven() -> None:
    found = proof(Pooled(), X)
    assert found.inputs[0] == "the example, made smaller (length 6 instead of 48)"
    assert any("length" in label for label in found.sizes) and any("batch" in label for label in found.sizes)
    assert WHOLE not in found.inputs and len(found.same_calls) == 3
    assert found.max_error <= 1e-12


@pytest.mark.parametrize("spoil", ["first.weight", "last.weight", "last.bias"])
def test_a_wrong_network_is_found(spoil: str) -> None:
    with pytest.raises(EquivalenceError, match="differ"):
        proof(Pooled(), X, spoil)


def test_what_runs_only_on_the_example_itself_is_run_there() -> None:
    found = proof(Pooled("long"), X)
    assert found.inputs[0] == WHOLE


def test_a_branch_that_the_cut_takes_otherwise_on_the_example_is_found() -> None:
    with pytest.raises(EquivalenceError):
        proof(Pooled("units"), X)


@pytest.mark.parametrize(("path", "run"), [("drop", "train mode"), ("train", "train mode"), ("gradients", "gradients")])
def test_a_mode_that_calls_something_else_is_run(path: str, run: str) -> None:
    found = proof(Pooled(path), X)
    assert any(run in label for label in found.inputs)
    assert not any(run in sentence for sentence in found.same_calls if "sizes" not in sentence)


def test_a_size_that_is_not_free_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 4))
    found = proof(net, torch.randn(1, 3, 16, 16))
    assert found.inputs[0] == WHOLE and "made smaller" not in " ".join(found.inputs)


def test_statistics_of_a_batch_are_proven_in_train_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    found = proof(net, X)
    assert any("in train mode" in label for label in found.inputs)


def test_a_program_that_asks_for_values_is_given_the_whole_example() -> None:
    class Asking(Pooled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2.0 if bool(x.sum() > 0) else 1.0)

    assert proof(Asking(), X).inputs[0] == WHOLE


def test_a_small_image_has_two_samples_where_statistics_need_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 6, stride=6), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    found = proof(net, X)
    assert "the example, made smaller (batch of 2 instead of 1, length 6 instead of 48), in train mode" in found.inputs


def test_noise_comes_with_another_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    label = "batch of 3 instead of 1: like the example, and normal random numbers"
    found = proof(net, X)
    assert f"{label}, noise in the place of equal weights" in found.inputs and found.perturbed > 0
    assert not any(other.startswith("noise") for other in found.inputs)
    with pytest.raises(EquivalenceError, match="differ"):
        proof(net, X, "1.running_var")
