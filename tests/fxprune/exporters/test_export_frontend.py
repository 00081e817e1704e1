"""torch.export as front end: the same network in its mode, batch free, ordinary inputs and outputs."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes import PruneChannels, couple, verify
from passes.errors import CaptureError
from passes.frontend.choose import capture
from passes.graph.annotations import specialised_in


@dataclass
class Output:
    logits: Tensor
    features: dict[str, Tensor]


torch.export.register_dataclass(Output)


class Network(nn.Module):
    """Batch norm, attention, dropout of every kind, buffers, constants; fx cannot follow the call of numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, 4)
        self.tied = nn.Linear(8, 4)
        self.tied.weight = self.fc.weight
        self.register_buffer("hidden", torch.rand(4), persistent=False)

    def forward(self, x: Tensor, extra: dict[str, Tensor] | None = None, *, gain: Tensor | None = None) -> Output:
        x = F.relu(self.norm(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2) * float(np.sqrt(x.shape[1]))
        x = self.drop(self.attention(tokens, tokens, tokens)[0].mean(1))
        x = F.dropout(x, 0.2, training=self.training)
        if extra is not None:
            x = x + extra["a"] * extra["b"][0]
        y = (self.fc(x) + self.tied(x)) * self.hidden * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
        return Output(y if gain is None else y * gain, {"x": x})


def rand(*sizes: int) -> Tensor:
    return torch.rand(*sizes, dtype=torch.float64)


def assert_same(model: nn.Module, gm: nn.Module, *inputs: Any, **named: Any) -> None:
    """Equal outputs and buffers, with the same random numbers, in the mode that both are in."""
    ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
    torch.manual_seed(5)
    expected = theirs(*inputs, **named)
    torch.manual_seed(5)
    actual = ours(*inputs, **named)
    assert type(actual) is type(expected)
    torch.testing.assert_close(vars(actual), vars(expected), rtol=1e-10, atol=1e-12)
    known = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, known.get(name, buffer))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_what_fx_cannot_trace_is_exported_in_its_mode(training: bool, size: int) -> None:
    model = Network().double().train(training)
    gm = capture(model, rand(size, 3, 6, 6))
    told = gm.meta["frontend"]
    assert told["which"] == "export" and "torch.fx could not" in told["why"] and "is free" in told["why"]
    assert "test_export_frontend.py" in told["why"]
    gm.graph.lint()
    assert gm.training is training and model.training is training
    for batch in (2, 5):
        assert_same(model, gm, rand(batch, 3, 6, 6))
    assert gm.fc.weight is model.fc.weight
    counter = set() if training else {"norm.num_batches_tracked"}  # evaluation counts no batches
    assert set(model.state_dict()) - set(gm.state_dict()) == {"tied.weight"} | counter
    assert_same(model, pickle.loads(pickle.dumps(gm)), rand(2, 3, 6, 6))
    gm.train()(rand(4, 3, 6, 6)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in gm.parameters())
    assert not any(node.op == "call_module" for node in gm.graph.nodes)


def test_nested_and_named_inputs() -> None:
    model = Network().double().eval()
    extra = {"a": rand(2, 8), "b": [rand(2, 8)]}
    gm = capture(model, {"x": rand(2, 3, 6, 6), "extra": extra, "gain": rand(2, 1)}, frontend="export")
    assert [node.target for node in gm.graph.find_nodes(op="placeholder")] == ["x", "extra", "gain"]
    extra = {"a": rand(4, 8), "b": [rand(4, 8)]}
    assert_same(model, gm, rand(4, 3, 6, 6), extra, gain=rand(4, 1))


def test_heads_are_literals_here_too() -> None:
    gm = capture(Network().double(), rand(2, 3, 6, 6), frontend="export")
    split = [node.args[-1] for node in gm.graph.nodes if node.target is torch.ops.aten.unflatten.int]
    assert split == [[2, 4]] * 3


class Variadic(nn.Module):
    def forward(self, first: Tensor, *others: Tensor, **named: Tensor) -> tuple[Tensor, list[Tensor]]:
        return first + sum(others) * named["gain"], [others[0]]


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Variadic()

    def forward(self, first: Tensor, *others: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.inner(first, *others, gain=first)


def test_variadic_inputs() -> None:
    inputs = (rand(3, 2), rand(3, 2), rand(3, 2))
    gm = capture(Both(), inputs, frontend="export")
    torch.testing.assert_close(gm(*inputs), Both()(*inputs))


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.fc(x) * float(np.sqrt(4))
        return {"y": x, "auxiliary": -x} if self.training else {"y": x}


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_graph_is_told(training: bool) -> None:
    model = Auxiliary().double().train(training)
    gm = capture(model, rand(2, 4), frontend="export")
    said = f"torch.export captured it in {'train' if training else 'eval'} mode"
    assert said in gm.meta["frontend"]["why"] and said in specialised_in(gm)[0]
    assert gm(rand(3, 4)).keys() == model(rand(3, 4)).keys()


def test_no_front_end_can() -> None:
    class OnValues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="test_export_frontend.py:.*second front end failed"):
        capture(OnValues(), torch.rand(3))
    with pytest.raises(CaptureError, match="give example_inputs"):
        capture(OnValues(), frontend="export")
    with pytest.raises(CaptureError, match="one of auto, fx, export"):
        capture(OnValues(), frontend="dynamo")


def test_the_first_front_end_is_preferred() -> None:
    gm = capture(nn.Linear(4, 4), torch.rand(2, 4))
    assert gm.meta["frontend"]["which"] == "fx" and isinstance(gm, fx.GraphModule)


class Part(nn.Module):
    """A part without autocast, which torch.export keeps as a graph inside the graph, and batch norm outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        with torch.autocast("cpu", enabled=False):
            x = x.float().cos().t().contiguous().view(-1, x.shape[0]).t()
        return self.head(self.norm(x))


def test_graphs_inside_the_graph_may_be_pruned() -> None:
    model, x = Part().eval(), torch.rand(5, 3)
    gm = capture(model, x, frontend="export")
    torch.testing.assert_close(gm(other := torch.rand(6, 3)), model(other))
    coupling = couple(gm, x)
    plan = coupling.plan({group.name: (0, 2, 5) for group in coupling.groups})
    assert plan.keep
    verify(gm, PruneChannels(plan)(gm).graph_module, plan, x)  # in float64, where checks of the type would not hold
