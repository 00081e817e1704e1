"""Branches that no example takes: a condition on values is followed with both answers, and proven with both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import EquivalenceError, apply_plan, couple, verify
from passes.stream.conditions import Turned

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
Asked = Callable[[Tensor], bool]


class Either(nn.Module):
    """Two layers, between which one of two functions stands."""

    def __init__(self, asked: Asked, otherwise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.asked, self.otherwise = nn.Linear(6, 16), nn.Linear(16, 4), asked, otherwise

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.otherwise(h) if self.asked(x) else F.relu(h))


NEVER: dict[str, Asked] = {
    "a maximum": lambda x: bool(x.max() > 1e30),
    "no number": lambda x: bool(x.isnan().any()),
    "zero as a number": lambda x: float(x.abs().sum()) == 0,
    "a large number": lambda x: x.abs().max().item() > 100,
}


@pytest.mark.parametrize("asked", NEVER)
@pytest.mark.filterwarnings("ignore")
def test_units_that_a_branch_which_is_never_taken_mixes_stay(asked: str) -> None:
    coupling = couple(Either(NEVER[asked], lambda h: h.softmax(-1)).eval(), X)
    assert coupling.groups == ()
    assert couple(Either(NEVER[asked], torch.tanh).eval(), X).widths == {"a": 16}


@pytest.mark.filterwarnings("ignore")
def test_a_branch_that_is_never_taken_is_proven_too() -> None:
    net = Either(NEVER["a maximum"], torch.tanh).eval()
    coupling = couple(net, X)
    plan = coupling.plan({"a": range(0, 16, 2)})
    cut = apply_plan(net, plan)
    certificate = verify(net, cut, plan, X)
    assert any("with the other answer at test_conditions.py:" in label for label in certificate.inputs)
    cut.otherwise = lambda h: h.tanh() * 1.001  # type: ignore[assignment]
    with pytest.raises(EquivalenceError, match="with the other answer at test_conditions.py:"):
        verify(net, cut, plan, X)


@pytest.mark.filterwarnings("ignore")
def test_a_condition_on_whole_numbers_is_turned_too() -> None:
    class Tokens(Either):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens.to(self.a.weight.dtype))

    tokens = torch.arange(18).view(3, 6)
    assert couple(Tokens(lambda x: bool((x == 99).all()), lambda h: h.softmax(-1)).eval(), tokens).groups == ()


@pytest.mark.filterwarnings("ignore")
def test_a_branch_that_raises_holds_nothing() -> None:
    def refuse(h: Tensor) -> Tensor:
        raise ValueError("the input is no number")

    net = Either(NEVER["no number"], refuse).eval()
    coupling = couple(net, X)
    plan = coupling.plan({"a": range(0, 16, 2)})
    assert verify(net, apply_plan(net, plan), plan, X).max_error <= 1e-9


def test_one_condition_is_turned_once() -> None:
    def asks() -> list[bool]:
        return [bool(torch.tensor(True)) for _ in range(3)]

    def here(line: int) -> str:
        return f"test_conditions.py:{line}"

    first = asks.__code__.co_firstlineno + 1
    with Turned(here(first)) as mode:
        assert asks() == [False, True, True] and mode.turned
    with Turned(here(first + 50)) as mode:
        assert asks() == [True, True, True] and not mode.turned
