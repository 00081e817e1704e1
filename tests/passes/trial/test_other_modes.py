"""Branches of train mode, and tensors that a module keeps for its next call."""

import pytest
import torch
from torch import Tensor, nn

from passes import Coupling, apply_plan, couple, verify
from passes.trial.other_modes import branches_on_mode

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Keeps its hidden state in a plain attribute; `how` says in what."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(6, 8), nn.Linear(8, 8)
        self.behind, self.out = nn.Linear(8, 10), nn.Linear(10, 3)
        self.how, self.state = how, [] if how == "list" else None

    def forward(self, x):
        before = self._before(x)
        hidden = torch.tanh(self.enter(x) + (0 if before is None else self.again(before)))
        self._keep(hidden.detach())
        return self.out(self.behind(hidden).relu())

    def _before(self, x):
        held = self.state if self.how == "tensor" else self.state[-1] if self.state else None
        return held if held is not None and len(held) == len(x) else None

    def _keep(self, hidden):
        if self.how == "list":
            self.state.append(hidden)
        else:
            self.state = hidden if self.how == "tensor" else (hidden,)


class Shown(nn.Module):
    """Keeps features that nothing reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out, self.features = nn.Linear(6, 8), nn.Linear(8, 3), None

    def forward(self, x):
        self.features = self.enter(x).relu()
        return self.out(self.features)


class Mirrored(nn.Module):
    """Adds units in reverse in train mode, in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def mixed(self, hidden, inner):
        return inner + hidden.flip(1) if self.training else inner

    def forward(self, x):
        hidden = self.enter(x).relu()
        return self.out(self.mixed(hidden, self.inner(hidden).relu()))


class Derived(Mirrored):
    pass


class Dropping(nn.Module):
    """Hands its mode on to functions, and has layers that do otherwise in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.drop, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.drop(self.norm(self.enter(x)))
        return self.out(nn.functional.dropout(hidden, 0.1, training=self.training))


def halved(network: nn.Module, inputs: Tensor) -> tuple[Coupling, nn.Module]:
    """Every second unit of every group is left, which is proven."""
    coupling = couple(network, inputs)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    cut = apply_plan(network, plan)
    verify(network, cut, plan, inputs)
    return coupling, cut


@pytest.mark.parametrize("how", ["tensor", "tuple", "list"])
def test_units_that_the_next_call_uses_go_from_both(how):
    network = Recurrent(how).eval()
    coupling, cut = halved(network, X)
    assert sorted(group.size for group in coupling.groups) == [8, 10]
    assert cut.again.weight.shape == (4, 4) and cut.enter.weight.shape == (4, 6)
    first = cut(X)
    assert not torch.equal(cut(X), first), "the second call uses what the first one kept"


def test_what_is_kept_to_be_looked_at_is_cut():
    coupling, cut = halved(Shown().eval(), X)
    cut(X)
    assert [group.size for group in coupling.groups] == [8] and cut.features.shape[1] == 4


@pytest.mark.parametrize("kind", [Mirrored, Derived])
def test_what_train_mode_alone_ties_is_cut_alike(kind):
    network = kind().eval()
    coupling, cut = halved(network, X)
    inner, outer = (cut.get_submodule(name).weight.shape[0] for name in ("inner", "enter"))
    assert inner == outer == 4
    assert cut.train()(X).shape == (4, 3)


def test_modes_that_are_handed_on_cost_no_run():
    assert branches_on_mode(Derived()) and not branches_on_mode(Dropping())
    network = Dropping().eval()
    coupling, _ = halved(network, X)
    assert [group.size for group in coupling.groups] == [8]
