"""What people hand to `netadapt` first in place of what it takes: one sentence that says what to do."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune import netadapt
from fxprune.errors import FxpruneError, InputError
from passes import PassError

EXAMPLE = torch.randn(1, 3, 8, 8)


def make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Flatten())


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.zeros(8)), 4)


def refused(model: Any, **arguments: Any) -> str:
    given = {"example_inputs": EXAMPLE, "progress": False, **arguments}
    with pytest.raises((FxpruneError, PassError)) as caught:
        netadapt(model, given.pop("budget", 0.5), **given)
    said = str(caught.value)
    assert len(said.splitlines()) <= 5 and len(said) < 600
    return said


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (nn.Linear, r"make one of it: Linear\(\.\.\.\)"),
        ("model.pt", "load them into it"),
        (Path("model.pt"), "load them into it"),
        (collections.OrderedDict(weight=torch.zeros(2)), "load_state_dict"),
        (make, "call it, and pass the network that it returns"),
        ([make()], "pass one of them"),
        (7, "pass the network itself"),
    ],
)
def test_no_model(model: Any, way: str) -> None:
    with pytest.raises(InputError, match=f"expected a torch.nn.Module or a torch.fx.GraphModule. To do: .*{way}"):
        netadapt(model, 0.5, example_inputs=EXAMPLE)


def test_an_exported_program_is_no_model() -> None:
    assert "pass program.module()" in refused(torch.export.export(make().eval(), (EXAMPLE,)))


@pytest.mark.parametrize(
    ("inputs", "way"),
    [
        ((1, 3, 8, 8), "torch.randn(1, 3, 8, 8)"),
        (torch.Size([1, 3, 8, 8]), "torch.randn(1, 3, 8, 8)"),
        (np.zeros((1, 3, 8, 8), "float32"), "torch.from_numpy"),
        (loader(), "next(iter(loader))[0]"),
        (loader().dataset, "next(iter(loader))[0]"),
        ((EXAMPLE, torch.zeros(1, dtype=torch.int64)), "if the second are labels"),
        (EXAMPLE.to(torch.uint8), "pass inputs that it takes"),
    ],
)
def test_no_inputs(inputs: Any, way: str) -> None:
    assert way in refused(make(), example_inputs=inputs)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_shape_in_the_place_of_inputs_in_every_form(form: str) -> None:
    refused(make(), example_inputs=(1, 3, 8, 8), form=form)


def test_functions_that_cannot_be_called_are_refused_before_anything_runs() -> None:
    def score(model: nn.Module) -> float:
        raise AssertionError("it ran")

    assert "train(model, steps)" in refused(make(), train=lambda model: None, evaluate=score)
    assert "evaluate(model)" in refused(make(), evaluate=lambda model, data: 0.0)
    called: list[Callable[..., object]] = [lambda model, steps, lr=0.1: None, lambda *all: None, print]
    for train in called:
        with pytest.raises(InputError, match="it ran"):
            netadapt(make(), 0.5, example_inputs=EXAMPLE, train=train, evaluate=score)


def test_a_network_without_weights() -> None:
    assert "to_empty(device='cpu')" in refused(make().to("meta"), evaluate=lambda model: 0.0)
