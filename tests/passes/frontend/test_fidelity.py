"""A captured graph computes what its module computes, or is refused; what it is specialised to is said."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import CaptureError, PruneChannels, capture, couple, verify
from passes.errors import SpecialisedWarning
from passes.graph.annotations import facts_of, specialised_in

Forward = Callable[[Any, Tensor], Any]


class Base(nn.Module):
    """Two layers; `more` is what forward makes of their result."""

    def __init__(self, more: Forward) -> None:
        super().__init__()
        self.a, self.b, self.calls, self.more = nn.Linear(4, 16), nn.Linear(16, 2), 0, more
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.b(F.relu(self.a(x))) * self.more(self, x)


X = torch.randn(3, 4)


def captured(model: nn.Module, inputs: Any = X, frontend: str = "auto") -> tuple[Any, list[str]]:
    """The graph, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = capture(model, inputs, frontend)
    return gm, [str(w.message) for w in caught if w.category is SpecialisedWarning]


SPECIALISED: dict[str, tuple[Forward, str]] = {
    "a counter": (lambda self, x: self.calls, "counts or keeps between calls"),
    "Python's random": (lambda self, x: random.random(), "random numbers that Python or NumPy draws"),
    "NumPy's random": (lambda self, x: float(np.random.rand()), "random numbers that Python or NumPy draws"),
    "time": (lambda self, x: time.time() % 11, "the time at which forward runs"),
    "grad mode": (lambda self, x: 2 if torch.is_grad_enabled() else 3, "in the grad mode that it was captured in"),
    "trained weights": (lambda self, x: 2 if self.a.weight.requires_grad else 3, "while its parameters are trained"),
}


@pytest.mark.parametrize("name", SPECIALISED)
def test_what_a_graph_is_specialised_to_is_said_in_meta_certificate_and_a_warning(name: str) -> None:
    more, sentence = SPECIALISED[name]
    gm, warned = captured(Base(more).eval())
    assert any(sentence in said for said in specialised_in(gm)), specialised_in(gm)
    assert any(sentence in text for text in warned)
    coupling = couple(gm, X)
    plan = coupling.plan({"a": (0, 1, 4)})
    pruned = PruneChannels(plan)(gm).graph_module
    assert specialised_in(pruned) == specialised_in(gm) == verify(gm, pruned, plan, X).specialised


def _own(model: Base, kind: str, made: Any) -> Any:
    """A generator that the module keeps as an attribute."""
    return model.__dict__.setdefault(kind, made())


DRAWS: dict[str, Forward] = {
    "a rare choice": lambda self, x: 2 if torch.rand(()) < 0.05 else 1,
    "a common choice": lambda self, x: 2 if torch.rand(()) < 0.95 else 1,
    "flags": lambda self, x: (torch.rand(()) > 0.1).float(),
    "a whole number": lambda self, x: int(torch.randint(0, 2, ())) + 1,
    "in place": lambda self, x: float(torch.empty(()).bernoulli_(0.01)) + 1,
    "Python's choice": lambda self, x: random.choice([1.0, 1.0, 1.0, 2.0]),
    "NumPy's choice": lambda self, x: 2 if np.random.rand() < 0.02 else 1,
    "a generator of torch": lambda self, x: float(
        torch.rand((), generator=_own(self, "g", torch.Generator)) > 0.9  # held by the module
    ),
    "one of Python": lambda self, x: 2 if _own(self, "r", lambda: random.Random(0)).random() < 0.01 else 1,
    "one of NumPy": lambda self, x: 2 if _own(self, "n", lambda: np.random.default_rng(0)).random() < 0.01 else 1,
}


@pytest.mark.parametrize("inputs", [X, None], ids=["example", "no example"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_number_that_is_drawn_while_tracing_is_said_whatever_it_decides(name: str, inputs: Any) -> None:
    model = Base(DRAWS[name]).eval()
    model(X)  # which makes its generator
    for seed in range(4):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        gm, warned = captured(model, inputs)
        assert [text for text in warned if "random numbers" in text], seed
        assert [text for text in specialised_in(gm) if "random numbers" in text], seed


def test_of_a_number_that_nothing_depends_on_no_more_is_said_than_is_true() -> None:
    model = Base(lambda self, x: 2 if random.random() < 0.1 and self.training else 1).eval()
    gm, (warned,) = captured(model)
    assert "what its result takes from them, if anything, is fixed" in warned
    assert len(specialised_in(gm)) == 1


class Whole(nn.Module):
    """Stays one call of the graph, as it reads its mode and holds no tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if random.random() < 0.5 and self.training else 1)


DRAWN_ANEW: dict[str, Forward] = {
    "dropout": lambda self, x: F.dropout(self.a(x)[:, :1], 0.5, True),
    "noise": lambda self, x: torch.rand_like(self.a(x)[:, :1]),
    "gumbel": lambda self, x: F.gumbel_softmax(self.a(x)[:, :3])[:, :1],
    "sizes": lambda self, x: torch.rand(x.shape[0], 1),
    "a leaf, whose shape is asked for": lambda self, x: self.whole(x).shape[1],
}


@pytest.mark.parametrize("name", DRAWN_ANEW)
def test_what_the_graph_itself_draws_anew_is_no_number_of_it(name: str) -> None:
    model = Base(DRAWN_ANEW[name])
    model.whole = Whole()
    for inputs in (X, None):
        if inputs is not None or "shape" not in name:
            gm, warned = captured(model.train(), inputs)
            assert not [text for text in (*warned, *specialised_in(gm)) if "random numbers" in text]


def test_arguments_that_are_no_tensors_are_said() -> None:
    class Flagged(Base):
        def forward(self, x: Tensor, double: bool = False, name: str = "") -> Tensor:  # type: ignore[override]
            return super().forward(x) * (2 if double else 1)

    gm, warned = captured(Flagged(lambda self, x: 1).eval(), {"x": X, "double": True})
    assert specialised_in(gm) == ("its argument double is True, as in the example",) and len(warned) == 1


LIVE: dict[str, Forward] = {
    "nothing": lambda self, x: 1,
    "a counter that is a buffer": lambda self, x: self.count.add_(1),
    "a norm of weights": lambda self, x: self.a.weight.norm(),
    "dropout": lambda self, x: F.dropout(x.sum(), 0.5, self.training),
}


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("training", [True, False])
def test_what_a_graph_follows_is_not_warned_of(name: str, training: bool) -> None:
    model = Base(LIVE[name]).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gm, warned = captured(model)
    assert specialised_in(gm) == () and warned == []
    assert model.calls == 0 and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


LOST: dict[str, Forward] = {
    "a penalty": lambda self, x: sum(p.pow(2).sum() for p in self.parameters()),
    "a state_dict": lambda self, x: self.state_dict()["a.weight"].norm(),
}


@pytest.mark.parametrize("name", LOST)
def test_numbers_taken_from_parameters_follow_them_or_are_refused(name: str) -> None:
    model = Base(LOST[name]).eval()
    try:
        gm, _ = captured(model)
    except CaptureError:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(gm(X), model(X))


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_on_the_root_are_in_the_graph_or_named(kind: str) -> None:
    model = Base(lambda self, x: 1).eval()
    if kind == "forward":
        model.register_forward_hook(lambda module, args, output: output * 2)
    else:
        model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    for frontend in ("fx", "export"):
        try:
            gm, _ = captured(model, X, frontend)
        except CaptureError as error:
            assert "hook" in str(error)
        else:
            torch.testing.assert_close(gm(X), model(X))


def test_a_large_network_is_compared_before_anything_is_made_of_it() -> None:
    model = nn.Sequential(nn.Linear(4, 1 << 18), nn.ReLU(), nn.Linear(1 << 18, 2)).eval()
    gm, _ = captured(model)
    assert facts_of(gm).pending is not None, "its analysis costs no run of it"
    coupling = couple(gm, X)
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    plan = coupling.plan({"0": (0, 1)})
    with pytest.raises(CaptureError, match="has hooks on 0"):
        PruneChannels(plan)(gm)
    with pytest.raises(CaptureError, match="does not compute what the module computes"):
        verify(gm, gm, plan, X)
    model[0]._forward_hooks.clear()
    verify(gm, PruneChannels(plan)(gm).graph_module, plan, X)
    assert facts_of(gm).pending is None


def test_without_values_nothing_is_run() -> None:
    meta = Base(lambda self, x: 1).to("meta")
    assert specialised_in(capture(meta, torch.empty(3, 4, device="meta"))) == ()
    assert specialised_in(capture(Base(lambda self, x: 1), torch.empty(3, 4, device="meta"))) == ()
