"""What is kept of a candidate is what was scored: `train` may train weights in place, and `evaluate` only scores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, halved, loss_of, make, run
from torch import nn

from fxprune import FineTune, netadapt
from fxprune.errors import SearchError
from fxprune.training.own_forwards import own_forwards
from passes.errors import PrecisionError
from passes.stream.network_copies import clone

ONE_ROUND = FAST.replace(netadapt_max_rounds=1)
DATA = batches()
trained = FineTune(DATA, lr=0.05)


def scaled(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def to_meta(model: Any) -> None:
    model.to("meta")


def normed_anew(model: Any) -> None:
    model.train()
    for x, _ in DATA:
        model(x * 5 + 3)


def emptied(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(torch.zeros(1))
            return


LEFT = [halved, scaled, to_meta, normed_anew, emptied]


class Leaving:
    """An evaluate that does something to the network once it has scored it."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change = change

    def __call__(self, model: nn.Module) -> float:
        score = loss_of(model)
        self.change(model)
        return score


@pytest.mark.parametrize(
    ("change", "workers"), [*((change, 1) for change in LEFT), pytest.param(scaled, 2, marks=pytest.mark.slow)]
)
def test_evaluate_after_training_is_never_kept(change: Callable[[Any], None], workers: int) -> None:
    result = run(train=trained, evaluate=Leaving(change), config=ONE_ROUND.replace(workers=workers))
    assert result.accepted and loss_of(result.model) == pytest.approx(result.score, rel=1e-5)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", LEFT)
@pytest.mark.parametrize("form", ["module", pytest.param("graph", marks=pytest.mark.slow)])
def test_evaluate_of_repaired_candidates_is_never_kept(change: Callable[[Any], None], form: str) -> None:
    result = netadapt(
        make(), 0.7, example_inputs=EXAMPLE, evaluate=Leaving(change), calibration=[x for x, _ in DATA], form=form,
        config=ONE_ROUND.replace(sweeps=0, refine=0), progress=False,
    )  # fmt: skip
    assert result.accepted and loss_of(result.model) == pytest.approx(result.score, rel=1e-5)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


class Tempered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act, self.last = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3),
        )
        self.gain = 1.0
        self.settings = {"gain": 1.0}
        self.register_buffer("kept", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.act(self.norm(self.first(x)))) * self.gain * self.settings["gain"]
        return found.mean((2, 3))


def _set(path: str, value: object) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        holder, _, name = path.rpartition(".")
        setattr(model.get_submodule(holder), name, value)

    return change


def _hooked(model: Any) -> None:
    model.first.register_forward_hook(lambda module, args, output: output * 2)


def _patched(model: Any) -> None:
    before = model.act.forward
    model.act.forward = lambda x: before(x) * 3


def _inside(model: Any) -> None:
    model.settings["gain"] = 0.1


def _no_statistics(model: Any) -> None:
    model.norm.running_mean = model.norm.running_var = None


@pytest.mark.parametrize(
    ("change", "words"),
    [(_set("gain", 0.1), "no weight and no buffer holds: gain is 0.1, was 1.0"),
     (_set("norm.eps", 0.5), "holds: norm.eps is 0.5, was 1e-05"),
     (_set("act", nn.Tanh()), "holds: act is a Tanh, was a ReLU"),
     (_set("last.stride", (2, 2)), r"holds: last.stride is \(2, 2\), was \(1, 1\)"),
     (_hooked, "holds: first has 1 hooks around its forward, had 0"),
     (_patched, "holds: act.forward is another function"),
     (_inside, "holds: something in its objects or in its code"),
     (_no_statistics, "the buffer norm.running_mean is gone, or None"),
     (to_meta, "first.weight is on the meta device")],
)  # fmt: skip
def test_training_that_changes_what_no_weight_holds_is_refused(change: Callable[[Any], None], words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(SearchError, match=words):
        netadapt(
            Tempered(), 0.7, example_inputs=EXAMPLE, train=lambda model, steps: change(model), evaluate=lambda m: 1.0,
            config=ONE_ROUND, progress=False,
        )  # fmt: skip


def autocast_by_wraps(module: nn.Module) -> None:
    """As Accelerate does: the wrapped function is what `functools.wraps` keeps, and the method stands beside it."""
    before = module.forward
    function = before.__func__  # type: ignore[attr-defined]

    @functools.wraps(function)
    def forward(self: nn.Module, *args: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(self, *args).float()  # type: ignore[no-any-return]

    module._original_forward = before  # type: ignore[assignment]
    module.forward = MethodType(forward, module)  # type: ignore[method-assign]


def autocast_beside(module: nn.Module) -> None:
    before = module.forward

    def forward(*args: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return before(*args).float()  # type: ignore[no-any-return]

    module._original_forward = before  # type: ignore[assignment]
    module.forward = forward  # type: ignore[method-assign]


def by_accelerate(module: nn.Module) -> None:
    from accelerate import Accelerator  # type: ignore[import-not-found]

    Accelerator(cpu=True, mixed_precision="bf16").prepare(module)


class Deep(nn.Sequential):
    """Bfloat16 rounds its outputs by more than two runs in single precision may differ."""

    def __init__(self) -> None:
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(4)]
        super().__init__(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(4))
        self.eval()(EXAMPLE)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("submodules", [False, True])
@pytest.mark.parametrize("wrap", [autocast_by_wraps, autocast_beside, by_accelerate])
def test_mixed_precision_that_training_leaves_is_put_aside(
    wrap: Callable[[nn.Module], None], submodules: bool, form: Any
) -> None:
    if wrap is by_accelerate:
        pytest.importorskip("accelerate")
    torch.manual_seed(0)
    forwards = []

    def train(model: Any, steps: int) -> None:
        wrapped = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)] if submodules else [model]
        for module in wrapped:
            wrap(module)
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        forwards.append((model, model.__dict__.get("forward")))

    def evaluate(model: Any) -> float:
        assert model.__dict__.get("forward") is dict((id(m), f) for m, f in forwards).get(id(model))  # put back
        return 1.0

    result = netadapt(
        Deep(), 0.8, example_inputs=EXAMPLE, train=train, evaluate=evaluate, config=ONE_ROUND, form=form, progress=False
    )
    assert forwards and result.rounds and "forward" not in vars(result.model)


def test_a_forward_that_keeps_another_functions_is_refused() -> None:
    def other(x: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    def train(model: Any, steps: int) -> None:
        model.act.forward = functools.wraps(other)(lambda x: other(x) * 3)
        model.act._original_forward = model.last.forward

    with pytest.raises(SearchError, match=r"act.forward is another function; .* keep_fp32_wrapper=False"):
        netadapt(
            Tempered(), 0.7, example_inputs=EXAMPLE, train=train, evaluate=lambda m: 1.0, config=ONE_ROUND,
            progress=False,
        )  # fmt: skip


def test_a_forward_of_the_models_own_stays_beneath_what_wraps_it() -> None:
    network = Tempered().eval()
    network.act.forward = MethodType(lambda self, x: x.tanh(), network.act)  # type: ignore[method-assign]
    program, plain = clone(network), network(EXAMPLE)
    autocast_by_wraps(network.act)
    autocast_by_wraps(network.act)
    wrapper = network.act.forward
    with own_forwards(network, program):
        assert torch.equal(network(EXAMPLE), plain) and network.act.forward is not wrapper
    assert network.act.forward is wrapper


def test_a_graph_that_training_edits_is_refused() -> None:
    def edits(model: Any, steps: int) -> None:
        for node in model.graph.nodes:
            if node.target is torch.relu or "relu" in str(node.target):
                node.op, node.target = "call_function", torch.tanh
        model.recompile()

    with pytest.raises(SearchError, match="changed something that no weight and no buffer holds"):
        run(train=edits, evaluate=lambda model: 1.0, config=ONE_ROUND, form="graph")


def test_what_training_leaves_without_any_effect_is_no_matter() -> None:
    def counts(model: Any, steps: int) -> None:
        trained(model, steps)
        model.calls = 7
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        next(model.children()).register_forward_hook(lambda module, args, output: None)

    result = run(train=counts, evaluate=loss_of, config=ONE_ROUND)
    assert result.accepted and loss_of(result.model) == pytest.approx(result.score, rel=1e-5)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_statistics_in_another_type_than_the_weights_are_never_certified(form: str, kind: torch.dtype) -> None:
    def train(model: Any, steps: int) -> None:
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(kind)

    with pytest.raises(PrecisionError, match=f"fails in its own precision.*several types.*{kind}") as caught:
        run(train=train, evaluate=lambda model: 1.0, config=ONE_ROUND, form=form)
    assert "Let train leave each weight and buffer in the type" in str(caught.value)
    assert 'form="graph"' not in str(caught.value)
