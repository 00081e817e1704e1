"""Control flow over shapes, wrapped functions and modes: followed for the example, the batch size left free."""

from __future__ import annotations

import copy
import re
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes.errors import CaptureError
from passes.frontend.choose import capture
from passes.graph.annotations import specialised_in


def partition(x: Tensor, window: int, heads: int, training: bool) -> Tensor:
    """Window attention in small: pads, branches on sizes, writes into a mask, drops out."""
    batch, height, width, channels = x.shape
    pad = (window - width % window) % window
    x = F.pad(x, (0, 0, 0, pad))
    if pad > 0:
        mask = x.new_zeros((height, width + pad))
        mask[:, -pad:] = -1.0
        x = x + mask.unsqueeze(-1)
    x = x.reshape(batch * height, -1, heads, channels // heads)
    x = F.dropout(x.softmax(1), 0.5, training=training)
    return x.reshape(batch, height, -1, channels)[:, :, :width]


def opaque(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


fx.wrap("partition")
fx.wrap("opaque")


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return opaque(partition(self.fc(x), 4, 2, self.training))


class Shapes(nn.Module):
    """Every question that Python code asks of shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.table = nn.Parameter(torch.rand(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3 and x.shape[-1] == 6, "not a sequence"
        batch, length = x.size(0), x.size(1)
        if x.shape[2] > 7:
            raise ValueError("too wide")
        table = self.table[: int(length)] if length < len(self.table) else self.table
        steps = [self.fc(x[:, step]) for step in range(length)]
        total = torch.stack(steps, 1) + table + torch.zeros(batch, 1, 6, dtype=x.dtype)
        total = total * torch.arange(length, dtype=x.dtype).unsqueeze(-1)
        for row in total.transpose(0, 1):
            total = total + row.unsqueeze(1) / (length * batch)
        return total.view(*x.shape[:-1], 2, 3).flatten(-2) if isinstance(x, Tensor) else total[0]


def double(module: nn.Module) -> nn.Module:
    return module.double()


def assert_same(model: nn.Module, gm: nn.Module, *shapes: tuple[int, ...]) -> None:
    for mode in (False, True):
        for shape in shapes:
            x = torch.rand(*shape, dtype=torch.float64)
            torch.manual_seed(3)
            expected = copy.deepcopy(model).train(mode)(x)
            torch.manual_seed(3)
            torch.testing.assert_close(copy.deepcopy(gm).train(mode)(x), expected, rtol=1e-12, atol=1e-12)


def test_wrapped_functions_are_opened_where_they_can_be() -> None:
    model = double(Windows()).eval()
    gm = capture(model, torch.rand(2, 3, 6, 6))
    targets = {node.target for node in gm.graph.nodes}
    assert partition not in targets and opaque in targets
    assert_same(model, gm, (2, 3, 6, 6), (5, 3, 6, 6))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert_same(model, gm, (2, 3, 6, 6))
    assert any("pad > 0" in note for note in gm.meta["frontend"]["specialised"])


def test_without_an_example_wrapped_functions_stay_one_call() -> None:
    model = double(Windows())
    gm = capture(model)
    assert {partition, opaque} <= {node.target for node in gm.graph.nodes}
    assert_same(model, gm, (2, 3, 6, 6))
    assert fx._symbolic_trace._wrapped_fns_to_patch


def test_questions_about_shapes() -> None:
    model = double(Shapes())
    gm = capture(model, torch.rand(2, 5, 6))
    gm.graph.lint()
    assert_same(model, gm, (2, 5, 6), (7, 5, 6))
    assert "control flow over shapes" in gm.meta["frontend"]["why"]


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.rand(6))
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.clone()
        bias[2:4].zero_()
        bias[4:] = 2.0
        self.seen.add_(1.0)
        self.seen.copy_(self.seen * 2)
        return x + bias + self.seen


def test_in_place_writes_survive_dead_code_elimination() -> None:
    model = double(Inplace())
    gm = capture(model)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert_same(model, gm, (3, 6))
    assert model.seen.sum() == 0


class Running(nn.Module):
    """Keeps an average by assignment, and reads it before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        before = self.mean
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return x - self.mean + before * before


def test_a_buffer_that_is_assigned_keeps_its_new_value() -> None:
    model, example = double(Running()), torch.rand(2, 6)
    gm = capture(model, example)  # by torch.export, which says that in a graph
    gm.graph.eliminate_dead_code()
    gm.recompile()
    for _ in range(2):
        x = torch.rand(3, 6, dtype=torch.float64)
        expected = copy.deepcopy(model)
        torch.testing.assert_close(gm(x), expected(x))
        torch.testing.assert_close(gm.mean, expected.mean)
        model.mean = expected.mean.clone()
    with pytest.raises(CaptureError, match="the buffer mean is replaced"):
        capture(model, example, frontend="fx")


class OnBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(0) if x.shape[0] == 1 else x


def test_a_decision_by_the_batch_size_is_told() -> None:
    gm = capture(OnBatch(), torch.rand(1, 3))
    line = r"test_shape_tracing.py:\d+ in forward: return x.squeeze\(0\) if x.shape\[0\] == 1 else x"
    notes = gm.meta["frontend"]["specialised"]
    assert len(notes) == 2 and re.fullmatch(f"shape: {line}", notes[0]) and re.fullmatch(f"batch: {line}", notes[1])
    assert "leading dimension" in gm.meta["frontend"]["why"]


class ByMode(nn.Module):
    """Chooses a constant by its mode, as attention with a dropout probability does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        q = self.fc(x).unflatten(-1, (2, 3)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)
        return y.transpose(1, 2).flatten(2) * (2.0 if not self.training else 3.0)


@pytest.mark.parametrize("mode", [False, True])
def test_a_branch_by_mode_is_followed_in_its_own_and_told(mode: bool) -> None:
    model = double(ByMode()).train(mode)
    gm = capture(model)
    x = torch.rand(2, 4, 6, dtype=torch.float64)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(gm(x), expected)
    assert gm.meta["frontend"]["specialised"][0].startswith("mode: test_shape_tracing.py")
    assert f"{'train' if mode else 'eval'} mode" in specialised_in(gm)[0]


class TrainWrites(ByMode):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1.0)
        return self.fc(x)


def test_what_writes_in_train_mode_alone_is_not_run_in_eval() -> None:
    gm = capture(double(TrainWrites()).eval())
    gm(torch.rand(2, 6, dtype=torch.float64))
    assert "mode:" in gm.meta["frontend"]["specialised"][0] and "steps" not in dict(gm.named_buffers())


class TwoOutputs(ByMode):
    def forward(self, x: Tensor) -> Any:
        return (self.fc(x), x) if self.training else self.fc(x)


@pytest.mark.parametrize("mode", [False, True])
def test_another_structure_by_mode_is_captured_in_its_own_and_told(mode: bool) -> None:
    model = double(TwoOutputs()).train(mode)
    gm = capture(model)
    x = torch.rand(2, 6, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x))
    (note,) = gm.meta["frontend"]["specialised"]
    assert note.startswith("mode: test_shape_tracing.py")


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Gradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return Straight.apply(self.head(x))


def test_gradients_stop_and_pass_where_they_did() -> None:
    model = double(Gradients())
    gm = capture(model)
    x = torch.rand(2, 6, dtype=torch.float64)
    gm(x).sum().backward()
    assert gm.stem.weight.grad is None and gm.head.weight.grad.abs().sum() > 0
    assert torch.is_grad_enabled()
    assert_same(model, gm, (2, 6))
    with torch.no_grad():
        assert not gm(x).requires_grad and not torch.is_grad_enabled()


class OnBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(1))
        self.register_buffer("scale", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[: x.shape[-1]] if self.ready.item() == 1 else x


def test_a_branch_on_a_buffer_is_decided_by_its_value() -> None:
    model = double(OnBuffer())
    gm = capture(model)
    assert_same(model, gm, (2, 6))
    assert not [name for name, _ in gm.named_buffers() if name.startswith("_tensor_constant")]


def test_dicts_and_views_are_iterated() -> None:
    class Features(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            pooled = {name: feature.mean(-1) for name, feature in x.items()}
            return {**pooled, "sum": sum(x.values()), "keys": torch.full((len(x),), float(len(x)))}

    example = {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}
    gm = capture(Features(), (example,))
    torch.testing.assert_close(gm(example), Features()(example))


def test_a_forward_set_on_the_instance_is_the_one_captured() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    model.forward = types.MethodType(lambda self, x: self[0](x) * 2, model)  # type: ignore[method-assign]
    gm = capture(model.double())
    assert_same(model, gm, (2, 6))
    assert type(model) is nn.Sequential


class MakesTensors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(x.shape[0], 1) + torch.arange(x.size(1))


@pytest.mark.parametrize("example", [None, torch.rand(2, 6)])
def test_captures_leave_nothing_behind_that_breaks_the_next(example: Tensor | None) -> None:
    before = dict(fx._symbolic_trace._wrapped_fns_to_patch)
    gm = capture(MakesTensors(), example)
    assert dict(fx._symbolic_trace._wrapped_fns_to_patch) == before
    torch.testing.assert_close(gm(torch.ones(3, 6)), MakesTensors()(torch.ones(3, 6)))
    again = capture(gm)
    torch.testing.assert_close(again(torch.ones(3, 6)), gm(torch.ones(3, 6)))
    fx.symbolic_trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    with torch.device("meta"):
        assert torch.zeros(2).device.type == "meta"
    assert torch.zeros is torch._C._VariableFunctions.zeros and torch.zeros(2).sum() == 0
