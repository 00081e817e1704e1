"""Functions of the user's in long training: what they leave behind is put back, or refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import EXAMPLE, Net, batches, halved, loss_of
from torch import nn

import fxprune
from fxprune import DLContext, finetune
from fxprune.errors import InputError

DATA = batches()


def make() -> Net:
    """Without random numbers, of which a second forward in train mode would take some."""
    torch.manual_seed(3)
    made = Net()
    made.drop.p = 0.0
    return made


def zeroed(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.zero_()


def frozen(model: Any) -> None:
    model.requires_grad_(False)


def rebuilt(model: Any) -> None:
    model.norm = nn.Identity()
    model.tail.weight = nn.Parameter(torch.zeros(1))
    model.stem.register_forward_hook(lambda module, args, output: output * 0)
    model.branch[1].__class__ = nn.Tanh
    model.branch[1].forward = lambda x: x * 0
    model.tail.stride = (1, 1)
    model.calls = 3


def normed_anew(model: Any) -> None:
    model.train()
    model(EXAMPLE * 5 + 3)


LEFT = [halved, zeroed, frozen, rebuilt, normed_anew]


def leaving(change: Callable[[Any], None]) -> Callable[..., float]:
    def evaluate(model: nn.Module, context: object = None) -> float:
        score = loss_of(model)
        change(model)
        return score

    return evaluate


@pytest.mark.parametrize("change", LEFT)
def test_what_evaluate_does_to_the_network_is_put_back(change: Callable[[Any], None]) -> None:
    plain, changed = (
        finetune(make(), DATA, epochs=3, lr=0.01, warmup=0, evaluate=evaluate, progress=False)
        for evaluate in (loss_of, leaving(change))
    )
    assert changed.scores == plain.scores and changed.losses == plain.losses
    assert torch.equal(changed.model.eval()(EXAMPLE), plain.model.eval()(EXAMPLE))
    assert loss_of(changed.model) == pytest.approx(changed.score, rel=1e-5)
    assert {(p.dtype, p.requires_grad) for p in changed.model.parameters()} == {(torch.float32, True)}
    assert not hasattr(changed.model, "calls")


def trains(model: nn.Module, context: object) -> None:
    torch.manual_seed(0)
    fxprune.FineTune(DATA, lr=0.01)(model, 2)


@pytest.mark.parametrize("change", LEFT)
def test_what_a_validating_function_does_is_put_back(change: Callable[[Any], None], tmp_path: Path) -> None:
    found = []
    for validate in (leaving(lambda model: None), leaving(change)):
        model, context = make(), DLContext(max_epoch=3)
        score = fxprune.train(model, context, trains, validate, work_dir=tmp_path)
        assert loss_of(model) == pytest.approx(score, rel=1e-5)
        found.append(score)
    assert found[0] == found[1]


def test_a_training_function_that_makes_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train_func changed the network itself: stem.weight has type torch.float16"):
        fxprune.train(
            make(), DLContext(max_epoch=2), lambda m, c: halved(m), lambda m, c: 0.0, work_dir=tmp_path
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [({"optimizer": lambda parameters: None}, r"optimizer\(parameters\) returned None; expected an optimizer"),
     ({"optimizer": lambda parameters: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)},
      "has none of these parameters, so it would train nothing"),
     ({"loss": lambda outputs, targets: outputs.sum() * math.nan}, "training diverged: the loss is NaN or infinity"),
     ({"loss": lambda outputs, targets: None}, "the loss is None; expected a tensor of one number")],
)  # fmt: skip
def test_what_could_train_nothing_is_refused_at_once(given: dict[str, Any], words: str) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(InputError, match=words):
        finetune(model, DATA, epochs=2, progress=False, **given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
