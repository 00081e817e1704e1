"""What a cut copy cannot hold is said; a copy that still computes with the original is refused."""

from __future__ import annotations

import random
import warnings
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import PassError, apply_plan, capture, couple, verify
from passes.errors import SpecialisedWarning
from passes.graph.annotations import specialised_in

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two layers, and one whose width stays."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x))))


def hooked(net: Two) -> None:
    net.a.weight.register_hook(lambda gradient: gradient * 2)


def accumulated(net: Two) -> None:
    net.a.weight.register_post_accumulate_grad_hook(lambda parameter: None)


def shared(net: Two) -> None:
    net.c.weight = nn.Parameter(net.b.weight.data[:, :4])


def computed(net: Two) -> None:
    net.twice = net.a.weight * 2  # type: ignore[assignment]


SAID = {
    hooked: "hooks on the gradient of a.weight are left behind",
    accumulated: "hooks on the gradient of a.weight are left behind",
    shared: "b.weight and c.weight are two tensors in one memory",
    computed: "twice was computed from parameters and has their gradient",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", SAID)
def test_what_does_not_come_along_is_said_by_module_and_graph(change: Callable[[Two], None]) -> None:
    net = Two().eval()
    assert couple(net, X).module.specialised == ()  # type: ignore[union-attr]
    change(net)
    for said in (couple(net, X).module.specialised, specialised_in(capture(net, X))):  # type: ignore[union-attr]
        assert any(text.startswith(SAID[change]) for text in said), said


def test_tensors_that_lie_side_by_side_in_one_memory_are_not_named() -> None:
    net, flat = Two().eval(), torch.randn(2 * 64)
    net.b.weight, net.c.weight = nn.Parameter(flat[:64].view(4, 16)), nn.Parameter(flat[64:80].view(4, 4))
    assert couple(net, X).module.specialised == ()  # type: ignore[union-attr]


class Counts(Two):
    """Another function after the third call; `ever` counts and is not read."""

    calls, ever = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.ever += 1
        h = self.a(x)
        return self.c(self.b(h.tanh() if self.calls > 1000 else F.relu(h)))


@pytest.mark.filterwarnings("ignore")
def test_a_counter_that_is_read_is_said_and_one_that_is_not_is_no_matter() -> None:
    net = Counts().eval()
    for said in (couple(net, X).module.specialised, specialised_in(capture(net, X))):  # type: ignore[union-attr]
        (sentence,) = said
        assert sentence.startswith("forward changes calls, and does otherwise once it has another value")
    assert (net.calls, net.ever) == (0, 0)


def by_lambda(net: Two) -> None:
    net.end = lambda y: net.c(y)  # type: ignore[assignment]
    net.forward = MethodType(lambda self, x: self.end(self.b(F.relu(self.a(x)))), net)  # type: ignore[method-assign]


def by_hook(net: Two) -> None:
    net.c.register_forward_hook(lambda module, args, output: output + net.c.bias)


def by_reference(net: Two) -> None:
    me = weakref.ref(net)
    net.forward = MethodType(lambda self, x: me().c(self.b(F.relu(self.a(x)))), net)  # type: ignore[method-assign, misc]


def by_original_forward(net: Two) -> None:
    before = net.c.forward
    net.c.forward = lambda input: before(input) * 2  # type: ignore[method-assign]


@pytest.mark.parametrize("reach", [by_lambda, by_hook, by_reference, by_original_forward])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_that_computes_with_the_original_is_refused(reach: Callable[[Two], None], dtype: torch.dtype) -> None:
    net = Two().to(dtype).eval()
    reach(net)
    with pytest.raises(PassError, match=r"a copy of it still computes with c\.\w+ of the module that was given"):
        couple(net, X.to(dtype))


def test_what_is_reached_through_the_module_itself_comes_along() -> None:
    net = Two().eval()
    net.c.register_forward_hook(lambda module, args, output: output + module.bias)
    net.b.forward = MethodType(lambda self, h: F.linear(h, self.weight, self.bias) * 2, net.b)  # type: ignore[method-assign]
    coupling = couple(net, X)
    plan = coupling.plan({"a": range(0, 16, 2)})
    cut: Any = apply_plan(net, plan)
    assert verify(net, cut, plan, X).max_error <= 1e-9
    cut(X).sum().backward()
    assert cut.c.bias.grad is not None and net.c.bias.grad is None


def test_a_module_that_refuses_to_be_copied_is_named() -> None:
    class Alone(Two):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is one of me")

    with pytest.raises(PassError, match="Alone cannot be copied .TypeError: there is one of me"):
        couple(Alone().eval(), X)


def test_a_warning_says_it() -> None:
    net = Two().eval()
    hooked(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        couple(net, X)
    assert any("left behind" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_numbers_that_forward_draws_in_python_are_said(draw: Any) -> None:
    class Tosses(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if draw() < 0.5 else 3.0)

    before = random.getstate(), np.random.get_state()[1].tobytes()
    with pytest.warns(SpecialisedWarning, match="draws random numbers of Python or NumPy"):
        couple(Tosses(), X)
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())
