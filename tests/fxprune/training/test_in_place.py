"""What is kept of a candidate is what was scored: `train` may train weights in place, and `evaluate` only scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, FAST, batches, make, run
from torch import nn

from fxprune import FineTune, netadapt
from fxprune.errors import SearchError
from passes.errors import PrecisionError

ONE_ROUND = FAST.replace(netadapt_max_rounds=1)
DATA = batches()
trained = FineTune(DATA, lr=0.05)


def loss_of(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return -float(sum(nn.functional.cross_entropy(model(x), y) for x, y in DATA))


def halved(model: Any) -> None:
    model.half()


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


@pytest.mark.parametrize(("change", "workers"), [*((change, 1) for change in LEFT), (scaled, 2)])
def test_evaluate_after_training_is_never_kept(change: Callable[[Any], None], workers: int) -> None:
    result = run(train=trained, evaluate=Leaving(change), config=ONE_ROUND.replace(workers=workers))
    assert result.accepted and loss_of(result.model) == pytest.approx(result.score, rel=1e-5)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", LEFT)
@pytest.mark.parametrize("form", ["module", "graph"])
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
