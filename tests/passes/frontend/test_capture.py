"""Capture: the graph computes what the model does, in both modes, and the model is left as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes.errors import CaptureError
from passes.frontend.choose import capture


class Blocks(nn.Module):
    """Dropout in both spellings, batch norm, a shared module, tied and direct parameters, a hidden buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 1)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("shift", torch.rand(6, 1, 1))
        self.register_buffer("hidden", torch.rand(6, 1, 1), persistent=False)
        self.head = nn.Linear(6, 4)
        self.tied = nn.Linear(6, 4)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.norm(self.conv(x))), 0.3, training=self.training)
        x = self.twice(self.twice(x)) * self.scale + self.shift[:6] + self.hidden
        x = self.drop(x).mean((2, 3))
        return self.head(x) + self.tied(x)


class RowDrop(nn.Module):
    """As torchvision's StochasticDepth: a childless module that branches on the mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype))


def drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    if not training or p == 0.0:
        return x
    return x * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 1 - p, dtype=x.dtype))


class NormAct(nn.BatchNorm2d):
    """A batch norm that branches on the mode itself and has an activation inside."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        batch = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, batch, 0.1, self.eps)
        return self.act(x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = NormAct(3)
        self.row = RowDrop()

    def forward(self, x: Tensor) -> Tensor:
        return self.row(self.norm(self.conv(x))) + drop_path(x, 0.4, self.training)


def assert_same(model: nn.Module, gm: nn.Module, *inputs: object, **kwargs: object) -> None:
    """Equal outputs, with the same random numbers, in both modes."""
    for mode in (False, True):
        ours, theirs = copy.deepcopy(gm).train(mode), copy.deepcopy(model).train(mode)
        torch.manual_seed(7)
        expected = theirs(*inputs, **kwargs)
        torch.manual_seed(7)
        torch.testing.assert_close(ours(*inputs, **kwargs), expected, rtol=0, atol=0)
        for name, buffer in ours.named_buffers():
            torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=0, atol=0)


@pytest.mark.parametrize("build", [Blocks, Branching])
@pytest.mark.parametrize("captured_in_training", [False, True])
@pytest.mark.parametrize("example", [None, (torch.rand(2, 3, 5, 5),)])
def test_modes_stay_switchable(build: Callable[[], nn.Module], captured_in_training: bool, example: object) -> None:
    model = build().double().train(captured_in_training)
    gm = capture(model, example)
    assert gm.training == captured_in_training
    gm.graph.lint()
    assert_same(model, gm, torch.rand(4, 3, 5, 5, dtype=torch.float64))
    assert_same(model, fx.GraphModule(gm, copy.deepcopy(gm.graph)), torch.rand(4, 3, 5, 5, dtype=torch.float64))


def test_no_literal_training_is_left() -> None:
    gm = capture(Blocks())
    (dropout,) = (node for node in gm.graph.nodes if node.target is F.dropout)
    assert isinstance(dropout.kwargs["training"], fx.Node) and dropout.kwargs["training"].target == "training"


def test_pickle_and_deepcopy_keep_the_mode_live() -> None:
    model = Blocks().double()
    gm = capture(model)
    x = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    assert_same(model, pickle.loads(pickle.dumps(gm)), x)
    assert_same(model, copy.deepcopy(gm), x)


def test_the_mode_of_each_module_is_carried() -> None:
    model = Blocks().train()
    model.norm.eval()
    gm = capture(model)
    assert gm.training and not gm.norm.training
    gm.eval()
    assert model.training and model.conv.training


def test_weights_are_shared_and_names_kept() -> None:
    model = Blocks()
    gm = capture(model)
    assert gm.scale is model.scale and gm.conv.weight is model.conv.weight
    assert gm.head.weight is gm.tied.weight
    assert set(gm.state_dict()) == set(model.state_dict())
    assert "hidden" in dict(gm.named_buffers())


def test_nodes_know_their_source_line() -> None:
    (node,) = (node for node in capture(Blocks()).graph.nodes if node.target == "norm")
    assert "test_capture.py" in node.stack_trace and "self.norm(self.conv(x))" in node.stack_trace


class Writing(nn.Module):
    """Sets attributes, appends to a list and counts its calls while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.seen: list[object] = []
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.fc(x)
        self.seen.append(self.last)
        self.calls += 1
        return self.last


def test_the_model_is_left_as_it_was() -> None:
    model = Writing().train()
    before = dict(model.__dict__)
    gm = capture(model)
    assert model.__dict__ == before and model.training is True
    assert model.seen == [] and not hasattr(model, "last") and model.calls.item() == 0
    assert isinstance(gm, fx.GraphModule)


class Signature(nn.Module):
    """Optional, keyword and nested inputs; dict and tuple outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, state: dict[str, Tensor] | None = None, gain: float = 2.0
    ) -> dict[str, object]:
        y = self.fc(x) * gain
        if mask is not None:
            y = y * mask
        if state is not None:
            y = y + state["bias"]
        return {"y": y, "pair": (x, [y])}


@pytest.mark.parametrize("names", [(), ("mask",), ("state",), ("mask", "state", "gain")])
def test_optional_and_nested_inputs(names: tuple[str, ...]) -> None:
    every = {"mask": torch.rand(4), "state": {"bias": torch.rand(4)}, "gain": 3.0}
    given = {name: every[name] for name in names}
    model = Signature()
    x = torch.rand(2, 4)
    gm = capture(model, {"x": x, **given}) if names else capture(model)
    assert_same(model, gm, x, **given)
    if "mask" not in names:
        with pytest.raises(AssertionError, match="mask was not given when this graph was captured"):
            gm(x, mask=every["mask"], **given)


class Variadic(nn.Module):
    def forward(self, first: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first * named["gain"]


def test_variadic_inputs() -> None:
    inputs = (torch.rand(3), torch.rand(3), torch.rand(3))

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Variadic()

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return self.inner(a, b, c, gain=c)

    assert_same(Root(), capture(Root()), *inputs)


def test_a_graph_module_is_taken_as_it_is() -> None:
    given = fx.symbolic_trace(Blocks())
    for node in given.graph.nodes:
        node.meta["mark"] = node.name
    before = str(given.graph)
    gm = capture(given)
    assert str(gm.graph) == before and all(node.meta["mark"] == node.name for node in gm.graph.nodes)
    gm.eval()
    gm.graph.erase_node(next(iter(reversed(gm.graph.nodes))))
    assert given.training and given.conv.training and str(given.graph) == before
    assert gm.conv.weight is given.conv.weight


class OnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_what_cannot_be_traced_is_said_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"test_capture.py:\d+ in forward: if x.sum\(\) > 0"):
        capture(OnValues(), frontend="fx")
    with pytest.raises(CaptureError, match="torch.fx.wrap"):
        capture(OnValues(), torch.rand(3), frontend="fx")
    with pytest.raises(CaptureError, match="not a? ?function|nn.Module"):
        capture(torch.relu)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="do not fit OnValues.forward"):
        capture(OnValues(), (1, 2))


class Scaled(nn.Module):
    """What a library marks its weights with decides how they are used."""

    def __init__(self, marked: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        if marked:
            self.weight.SCB = torch.ones(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.t()
        return x @ weight * 2 if hasattr(self.weight, "SCB") else x @ weight


@pytest.mark.parametrize("marked", [True, False])
def test_a_weight_is_asked_for_its_own_attributes(marked: bool) -> None:
    model, x = Scaled(marked), torch.randn(2, 3)
    assert torch.equal(capture(model, x)(x), model(x))


class WritesOver(nn.Module):
    """A buffer that one operation writes into, whose result nothing uses."""

    def __init__(self, write: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(6, 8), write
        self.register_buffer("kept", torch.zeros(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.kept, self.layer(x))
        return self.kept * 2


@pytest.mark.parametrize(
    "write",
    [
        lambda b, h: b.lerp_(h, 0.1),
        lambda b, h: b.lerp_(h, h),
        lambda b, h: b.masked_fill_(h > 0, 0.5),
        lambda b, h: b.masked_fill_(h > 0, h.sum()),
        lambda b, h: b.add_(h, alpha=0.5),
        lambda b, h: b.add_(h).clamp_(max=1),
        lambda b, h: b.copy_(h).div_(2, rounding_mode="floor"),
        lambda b, h: b.addcmul_(h, h, value=0.3),
    ],
    ids=range(8),
)
def test_writes_in_place_are_kept_with_the_arguments_that_they_have(write: Callable[[Tensor, Tensor], object]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    model = WritesOver(write)
    graph = capture(copy.deepcopy(model), x)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert torch.equal(graph(x), model(x))
