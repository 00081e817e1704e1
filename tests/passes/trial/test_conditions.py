"""Branches that no example takes: a condition on values or sizes is followed and proven with both answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import EquivalenceError, apply_plan, capture, couple, verify
from passes.errors import SpecialisedWarning
from passes.graph.annotations import specialised_in
from passes.stream.conditions import SizeConditions, Turned

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


SIZES: dict[str, Asked] = {
    "a batch": lambda x: x.shape[0] == 77,
    "a large batch": lambda x: x.size(0) > 64,
    "its length": lambda x: len(x) > 64,
    "a remainder": lambda x: bool((x.shape[0] + 1) % 71 == 0),
    "a ratio": lambda x: x.shape[0] / 2 > 40,
    "one of some": lambda x: x.shape[0] in (71, 73),
    "all elements": lambda x: x.numel() // x.shape[1] >= 200,
    "a bit": lambda x: bool(x.shape[0] >> 6),
    "a quotient": lambda x: divmod(x.shape[0], 70)[0] == 1,
    "a share": lambda x: x.shape[0] * 0.5 > 35.5,
    "a root": lambda x: x.shape[0] ** 0.5 > 8,
}


@pytest.mark.parametrize("asked", SIZES)
def test_a_branch_on_a_size_that_no_run_has_is_followed_and_proven(asked: str) -> None:
    assert couple(Either(SIZES[asked], lambda h: h.roll(1, 1)).eval(), X).groups == ()
    net = Either(SIZES[asked], torch.tanh).eval()
    coupling = couple(net, X)
    plan = coupling.plan({"a": range(0, 16, 2)})
    cut = apply_plan(net, plan)
    certificate = verify(net, cut, plan, X)
    assert any(label.endswith(" (size)") for label in certificate.inputs)
    cut.otherwise = lambda h: h.tanh() * 1.001  # type: ignore[assignment]
    with pytest.raises(EquivalenceError, match="with the other answer at test_conditions.py:.*size"):
        verify(net, cut, plan, X)


@pytest.mark.parametrize("asked", SIZES)
@pytest.mark.filterwarnings("ignore")
def test_a_branch_on_a_size_that_a_graph_does_not_hold_is_said(asked: str) -> None:
    gm = capture(Either(SIZES[asked], torch.tanh).eval(), X)
    assert any("the condition at test_conditions.py:" in text for text in specialised_in(gm))


def test_a_branch_on_a_size_that_gives_the_same_is_not_said() -> None:
    gm = capture(Either(SIZES["a batch"], F.relu).eval(), X)
    assert specialised_in(gm) == ()


FAR: dict[str, Asked] = {
    "a plain integer": lambda x: int(x.shape[0]) > 70,
    "a function of math": lambda x: math.sqrt(x.shape[0]) > 8,
    "the larger of two": lambda x: max(x.shape[0], 60) > 60,
    "pieces": lambda x: len(x.split(70)) > 1,
    "a table of positions": lambda x: bool(torch.arange(x.shape[0]).max() > 70),
    "memory": lambda x: x.nbytes > 1700,
}


@pytest.mark.parametrize("asked", FAR)
@pytest.mark.filterwarnings("ignore")
def test_a_branch_beyond_a_threshold_is_found_whatever_is_made_of_the_size(asked: str) -> None:
    assert couple(Either(FAR[asked], lambda h: h.softmax(-1)).eval(), X).groups == ()


@pytest.mark.parametrize("asked", [name for name in FAR if name != "a table of positions"])
@pytest.mark.filterwarnings("ignore")
def test_a_graph_says_that_its_module_has_another_branch_beyond_a_threshold(asked: str) -> None:
    gm = capture(Either(FAR[asked], torch.tanh).eval(), X)
    assert any("at others the module calls other operators" in text for text in specialised_in(gm))


@pytest.mark.filterwarnings("ignore")
def test_conditions_on_sizes_are_followed_where_a_program_asks_for_values_too() -> None:
    class OnValues(Either):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / max(1.0, float(x.abs().max())))

    net = OnValues(SIZES["a batch"], lambda h: h.softmax(-1)).eval()
    coupling = couple(net, X)
    assert coupling.module is not None and coupling.module.real and coupling.groups == ()


TABLES: dict[str, Asked] = {
    "a dictionary": lambda x: {77: True}.get(x.shape[0], False),
    "a set": lambda x: x.shape[0] in {77, 99},
    "a key of two": lambda x: (x.shape[0], 6) in {(77, 6): 1},
}


@pytest.mark.parametrize("asked", TABLES)
def test_tables_in_which_a_size_is_looked_up_are_said(asked: str) -> None:
    with pytest.warns(SpecialisedWarning, match=r"looks up sizes of its inputs in a table \(test_conditions.py:"):
        coupling = couple(Either(TABLES[asked], torch.tanh).eval(), X)
    assert coupling.widths == {"a": 16}


def test_sizes_that_the_inputs_do_not_move_are_not_turned() -> None:
    class Checked(Either):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 6 or self.a.weight.shape[0] == 16:
                x = x * 2
            return super().forward(x)

    net = Checked(lambda x: x.dim() == 3, torch.tanh).eval()
    coupling = couple(net, X)
    assert coupling.module is not None and coupling.module.turned == () and coupling.widths == {"a": 16}


def test_conditions_of_one_line_have_names_of_their_own() -> None:
    def asks(x: Tensor) -> list[bool]:
        return [x.shape[0] > 2, bool(x.shape[1]), math.ceil(x.shape[0] / 2) < 2, -x.size(0) == 1 - len(x) * 2]

    x, before = torch.ones(3, 2), len
    with SizeConditions() as conditions:
        assert asks(x) == [True, True, False, False]
    names = list(conditions.asked)
    assert [name.partition(" ")[2] for name in names] == ["(size)", "(size 2)", "(size 3)", "(size 4)"]
    for number, name in enumerate(names):
        with Turned(name):
            assert [place for place, pair in enumerate(zip(asks(x), asks(x), strict=True)) if pair[0] != pair[1]] == (
                [number]
            )
    assert len is before and type(copy.deepcopy(x.shape[0])) is int


class Arguments(nn.Module):
    """Either side of a condition makes the same calls, of the same tensors, with other numbers."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(6, 16), nn.Linear(16, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), x.shape[0] == 77))


def in_blocks(h: Tensor, other: bool) -> Tensor:
    blocks = 8 if other else 2
    h = h.view(h.shape[0], blocks, 16 // blocks)
    return (h / (1 + h.abs().sum(1, keepdim=True))).flatten(1)


ARGUMENTS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "the dimension of a softmax": lambda h, other: h.softmax(1 if other else 0),
    "the sizes of a view": in_blocks,
}


@pytest.mark.parametrize("which", ARGUMENTS)
@pytest.mark.filterwarnings("ignore")
def test_units_stay_that_the_other_answer_joins_by_the_arguments_of_calls_alone(which: str) -> None:
    assert couple(Arguments(ARGUMENTS[which]).eval(), X).groups == ()
    assert couple(Arguments(lambda h, other: ARGUMENTS[which](h, False)).eval(), X).groups


def test_what_the_two_answers_restate_otherwise_is_said() -> None:
    coupling = couple(Arguments(in_blocks).eval(), X)
    assert any("its size does not follow" in str(frozen.why) for frozen in coupling.frozen)
