"""What a certificate takes for granted is tried: values, numbers, names, code, and that anything was compared."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes import Certificate, Coupling, EquivalenceError, Plan, PruneChannels, capture, couple, verify


def halves(model: nn.Module, inputs: Any) -> tuple[fx.GraphModule, fx.GraphModule, Plan, Coupling]:
    """A network in evaluation mode, its graph, and every second unit of every group of it."""
    gm = capture(model.eval(), inputs)
    coupling = couple(gm, inputs)
    assert coupling.groups, "there is something to prune"
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    return gm, PruneChannels(plan)(gm).graph_module, plan, coupling


def proven(model: nn.Module, inputs: Any, **options: Any) -> Certificate:
    gm, pruned, plan, _ = halves(model, inputs)
    return verify(gm, pruned, plan, inputs, **options)


class Guarded(nn.Module):
    """Two layers behind a function that gives numbers for some inputs only."""

    def __init__(self, guard: Callable[[Tensor], Tensor], end: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.a, self.b, self.guard, self.end = nn.Linear(6, 8), nn.Linear(8, 3), guard, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.b(torch.relu(self.a(self.guard(x)))))


GUARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "log": torch.log,
    "arcsine": torch.asin,
    "power": lambda x: x**1.5,
    "inverse root": lambda x: x.rsqrt(),
    "infinite below zero": lambda x: torch.where(x < 0, torch.inf, x),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_inputs_are_like_the_example_and_outputs_numbers(guard: str) -> None:
    certificate = proven(Guarded(GUARDS[guard]), torch.rand(4, 6) * 0.8 + 0.1)
    assert (
        certificate.finite == 1.0 and "the example" in certificate.inputs and "like the example" in certificate.inputs
    )
    assert "normal random numbers" in certificate.note + str(certificate.inputs)


def test_nothing_is_certified_where_no_output_is_a_number() -> None:
    gm, pruned, plan, _ = halves(Guarded(torch.sqrt), -torch.rand(4, 6) - 0.1)
    with pytest.raises(EquivalenceError, match="output 0 holds no finite number on the example.*nothing is certified"):
        verify(gm, pruned, plan, -torch.rand(4, 6) - 0.1)


def test_the_share_that_was_compared_is_said() -> None:
    model = Guarded(lambda x: x, lambda y: torch.cat([y, torch.full_like(y, torch.nan)], 1))
    assert proven(model, torch.rand(4, 6)).finite == 0.5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["a.bias", "b.weight"])
def test_parameters_that_are_no_numbers_are_named(name: str, value: float) -> None:
    model, x = Guarded(lambda x: x), torch.rand(4, 6)
    gm, pruned, plan, _ = halves(model, x)
    with torch.no_grad():
        pruned.get_parameter(name).view(-1)[0] = value
    with pytest.raises(EquivalenceError, match=f"{name} of the pruned network holds 1 of"):
        verify(gm, pruned, plan, x, trained=True)


def test_no_run_proves_nothing() -> None:
    gm, pruned, plan, _ = halves(Guarded(lambda x: x), torch.rand(4, 6))
    for runs in (0, -1):
        with pytest.raises(ValueError, match="at least"):
            verify(gm, pruned, plan, torch.rand(4, 6), runs=runs)


def test_a_small_output_beside_a_large_one_is_compared_by_its_own_size() -> None:
    gm, pruned, plan, _ = halves(
        Guarded(lambda x: x, lambda y: torch.cat([y[:, :2], y[:, 2:] * 1e8], 1)), torch.rand(4, 6)
    )
    with torch.no_grad():
        pruned.get_parameter("b.bias")[0] += 1e-3
    with pytest.raises(EquivalenceError, match="outputs differ"):
        verify(gm, pruned, plan, torch.rand(4, 6))


def test_statistics_that_are_all_alike_hide_no_wrong_index() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    gm, pruned, plan, _ = halves(model, x)
    assert verify(gm, pruned, plan, x).perturbed == 4


NAMES = [
    "in",
    "class",
    "None",
    "self",
    "\\",
    "0",
    "a b",
    "'",
    '"',
    "\n",
    "é",
    "ﬁ",
    "日本",
    "__x",
    "torch",
    "getattr",
    "x",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_modules_and_parameters_may_be_called_anything(name: str, frontend: str) -> None:
    if frontend == "export" and name == "\n":
        pytest.skip("torch.export itself cannot")

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.out = nn.ModuleDict({name: nn.ModuleDict({name: nn.Linear(4, 8)})}), nn.Linear(8, 2)
            self.add_module(name, nn.ReLU())
            self.register_parameter(f"p{name}", nn.Parameter(torch.randn(8)))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self._modules[name](self.part[name][name](x)) * getattr(self, f"p{name}"))  # type: ignore[index, misc]

    model, x = Named().eval(), torch.randn(3, 4)
    gm = capture(model, x, frontend)
    assert torch.allclose(gm(x), model(x)) and torch.allclose(copy.deepcopy(gm)(x), model(x))
    coupling = couple(gm, x)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    pruned = PruneChannels(plan)(gm).graph_module
    verify(gm, pruned, plan, x)
    assert pruned(x).shape == (3, 2)


def test_code_that_is_not_that_of_the_nodes_is_not_certified() -> None:
    gm, pruned, plan, _ = halves(Guarded(lambda x: x), torch.rand(4, 6))
    type(pruned).forward = lambda self, x: self.b(torch.relu(self.a(x))) + 1e-3  # type: ignore[method-assign, assignment]
    with pytest.raises(EquivalenceError, match="generated code differs by"):
        verify(gm, pruned, plan, torch.rand(4, 6))
    type(pruned).forward = lambda self, x: self.gone(x)  # type: ignore[method-assign, assignment]
    with pytest.raises(EquivalenceError, match="its generated code does not: AttributeError"):
        verify(gm, pruned, plan, torch.rand(4, 6))


class FromZeros(nn.Module):
    """States that start from zeros whose type nobody names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.out = kind, nn.Linear(8, 2)
        self.cell: nn.Module = {"gru": nn.GRUCell, "rnn": nn.RNNCell, "slices": nn.Linear}.get(kind, nn.LSTM)(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "lstm":
            zeros = torch.zeros(1, x.shape[1], 8)
            return self.out(self.cell(x, (zeros, zeros))[0][-1])
        if self.kind == "slices":
            y = torch.zeros(x.shape[1], 8)
            y[:, 2:] = self.cell(x[0])[:, 2:]
            return self.out(y)
        h = torch.zeros(x.shape[1], 8, dtype=torch.float32) if self.kind == "rnn" else torch.zeros(x.shape[1], 8)
        for step in range(3):
            h = self.cell(x[step], h)
        return self.out(h)


@pytest.mark.parametrize("kind", ["gru", "rnn", "lstm", "slices"])
def test_a_state_that_starts_from_zeros_is_proven(kind: str) -> None:
    assert proven(FromZeros(kind), torch.randn(3, 2, 4)).max_error < 1e-12


class LastOf(nn.Module):
    """The last step, counted from the end, of states whose width is pruned."""

    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.take = nn.Linear(4, 8), nn.Linear(8, 2), take

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.take(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    "take",
    [
        lambda y: y[:, -1],
        lambda y: y[:, -2:].mean(1),
        lambda y: y[:, :-1].amax(1),
        lambda y: y.select(1, -1),
        lambda y: y.narrow(1, -2, 2).sum(1),
        lambda y: y[..., -1, :],
        lambda y: y[:, 1:, 1:].sum(1)[:, :4] if y.shape[2] == 3 else y[:, 1:].sum(1),
    ],
)
def test_places_counted_from_the_end_stay_the_last_at_other_lengths(take: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 4)
    gm, pruned, plan, coupling = halves(LastOf(take), x)
    certificate = verify(gm, pruned, plan, x)
    assert any(size.startswith("length 10") for size in certificate.sizes)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 8, batch_first=True, num_layers=2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def test_a_recurrent_network_is_proven_at_its_length() -> None:
    assert proven(Recurrent(), torch.randn(2, 5, 4)).max_error < 1e-12


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)
        self.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.up(x), dim=1) @ self.weight
        return self.down(torch.fft.irfft(spectrum, dim=1, n=x.shape[1]))


def test_complex_weights_are_proven_in_double_precision_and_train() -> None:
    x = torch.randn(2, 6, 3)
    gm, pruned, plan, _ = halves(Complex(), x)
    assert verify(gm, pruned, plan, x).max_error < 1e-12
    assert pruned.get_parameter("weight").requires_grad and pruned.get_parameter("weight").is_complex()


class Draws(nn.Module):
    """Random numbers of all kinds in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(torch.relu(self.a(x + torch.rand(4))), 0.3, True))


def test_a_proof_leaves_random_states_and_settings_alone() -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    wanted = torch.rand(2).tolist(), random.random(), float(np.random.rand())
    model, x = Guarded(lambda x: x), torch.rand(4, 6)
    gm, pruned, plan, _ = halves(model, x)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    capture(model, x)
    couple(gm, x)
    PruneChannels(plan)(gm)
    with torch.enable_grad():
        verify(gm, pruned, plan, x)
        assert torch.is_grad_enabled()
    assert (torch.rand(2).tolist(), random.random(), float(np.random.rand())) == wanted
    assert torch.get_default_dtype() == torch.float32 and torch.backends.mha.get_fastpath_enabled()
