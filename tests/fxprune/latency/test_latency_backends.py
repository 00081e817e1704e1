"""Backends on this machine: the quick ONNX graph computes what the network does, profiles add up, real tables work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from latency_nets import INPUT, Net
from torch import Tensor, nn

from fxprune.latency import BackendError, Limits, latency_model, measure_latency_ms
from fxprune.latency.backends.compiled import Compiled
from fxprune.latency.backends.eager import Eager
from fxprune.latency.backends.onnx_graph import Graph, UnsupportedOperator, to_onnx
from fxprune.latency.backends.onnx_recording import record
from fxprune.latency.backends.onnx_runtime import OnnxRuntime, by_node
from fxprune.latency.backends.registry import find
from fxprune.latency.sampling import CALL, FIRST, Network, build
from fxprune.latency.table import LatencyTable
from fxprune.latency.units import units_of
from passes import capture, couple
from passes.process.state import random_state

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def through_onnx(model: nn.Module, *inputs: Tensor) -> list[np.ndarray]:
    """What the quick graph computes with the network's own weights."""
    gm = capture(model.eval(), inputs)
    tensors = {name: t.detach().numpy() for name, t in [*gm.named_parameters(), *gm.named_buffers()]}
    data = to_onnx(record(gm, inputs, fold=False), tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: t.numpy() for entry, t in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)


class Many(nn.Module):
    """One operator a branch, joined at the end."""

    def __init__(self, *functions: Any) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions)


ELEMENTWISE = (
    torch.relu, torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.relu6, F.mish, F.elu,
    torch.exp, torch.abs, torch.neg, torch.sin, F.leaky_relu, lambda x: F.gelu(x, approximate="tanh"),
    lambda x: x * 2 + 1, lambda x: 1 - x, lambda x: x / 3, lambda x: x**2, lambda x: x.clamp(min=0.1),
    lambda x: torch.sub(x, x.abs(), alpha=2), lambda x: (x.abs() + 1).rsqrt(), lambda x: (x.abs() + 1).log(),
    lambda x: torch.maximum(x, x * 0.5), lambda x: x.abs().sqrt(),
)  # fmt: skip
SHAPES = (
    lambda x: x.mean((2, 3)), lambda x: x.sum(1, keepdim=True), lambda x: x.amax(-1), lambda x: x.flatten(1),
    lambda x: x.transpose(1, 2), lambda x: x.permute(0, 2, 3, 1), lambda x: x.chunk(2, 1)[1], lambda x: x[:, 1:3],
    lambda x: torch.cat([x, x * 2], 1), lambda x: torch.stack([x, x], 2), lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.softmax(-1), lambda x: x.log_softmax(1), lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: x.unbind(1)[2],
    lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: F.pad(x, (1, 2, 0, 3)), lambda x: F.pixel_shuffle(x, 2), lambda x: x.roll((1, 2), (2, 3)),
    lambda x: F.interpolate(x, scale_factor=2.0), lambda x: x @ x.transpose(-1, -2), lambda x: x.select(2, 1),
    lambda x: F.interpolate(x, size=(9, 12), mode="bilinear"), lambda x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1),
)  # fmt: skip


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


def layers() -> nn.Module:
    return Layers(
        nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.ConvTranspose2d(8, 5, 3, 2), nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.BatchNorm2d(8),
        nn.LayerNorm(6), nn.LayerNorm([6, 6], elementwise_affine=False), nn.GroupNorm(2, 8), nn.PReLU(8),
        nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, affine=False)),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(36, 4, 20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(2))


@pytest.mark.parametrize(
    "model", [Many(*ELEMENTWISE), Many(*SHAPES), layers(), Attention()], ids=lambda m: type(m).__name__
)
def test_the_quick_graph_computes_what_the_network_does(model: nn.Module) -> None:
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = model.eval()(x)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    got = through_onnx(model, x)
    assert len(got) == len(expected)
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert mine.shape == tuple(theirs.shape), number
        assert np.allclose(mine, theirs.numpy(), atol=2e-5, rtol=1e-4), number


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18"])
def test_the_quick_graph_of_whole_networks(name: str) -> None:
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.allclose(through_onnx(model, x)[0], expected, atol=1e-4, rtol=1e-3)


def test_dtypes_are_kept() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        assert np.allclose(through_onnx(model, x)[0], model.eval()(x).numpy())


def test_an_operator_without_a_rule_is_named() -> None:
    with pytest.raises(UnsupportedOperator, match="cumsum"):
        record(capture(Many(lambda x: x.cumsum(1)), INPUT), INPUT)


def test_batch_norm_behind_a_convolution_is_folded() -> None:
    gm = capture(torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 32, 32))
    assert "BatchNormalization" not in {node.op for node in record(gm, torch.randn(1, 3, 32, 32)).nodes}


def test_profile_events_find_their_nodes() -> None:
    graph = Graph(owners=["conv", "relu", "fc"])
    names = ["@0@_nchwc", "ReorderOutput_token_3", "fused node_@2@", "session", "node_@1@/QuickGeluFusion/"]
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": 10 * (run + 1) + number}
        for run in range(3)
        for number, name in enumerate(names)
        if name != "session"
    ]
    events.insert(0, {"cat": "Session", "name": "model_run", "dur": 1000})
    nodes, ms = by_node(events, graph, runs=2)
    assert nodes == ("conv", "fc", "relu")
    # a change of layout counts to the node before it; half a tick is added to each operator
    assert ms.tolist() == [pytest.approx([0.042, 0.0225, 0.0245]), pytest.approx([0.062, 0.0325, 0.0345])]


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_profiles_add_up_to_the_whole(backend: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    gm = capture(torchvision.models.resnet18(weights=None).eval(), x)
    runs_on: Any = find(backend)
    profile = runs_on.profile(gm, x, None, 9)
    inside = {name for unit in units_of(gm, couple(gm, x)) for name in unit.nodes}
    assert set(profile.nodes) - {"x", "output"} <= inside
    assert profile.ms.shape == (len(profile.pace.times_ms), len(profile.nodes)) and (profile.ms >= 0).all()
    parts = profile.ms.min(axis=0).sum()  # the least, since other work may run beside the tests
    assert 0.3 < parts / profile.whole.low < 1.5
    assert 0.3 < parts / measure_latency_ms(gm, x, backend=backend, repeats=9).low < 1.5


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    gm = capture(Net().eval(), INPUT)
    Eager(threads=before + 1).prepare(gm, INPUT)()
    assert torch.get_num_threads() == before


def test_a_real_table_of_a_small_network(tmp_path) -> None:
    """No figures are asserted that a busy machine could break, but the second build's, which is none."""
    gm = capture(Net().eval(), INPUT)
    model = latency_model(gm, INPUT, table=tmp_path / "t.json", limits=Limits(networks=FIRST, repeats=5))
    found = LatencyTable.load(tmp_path / "t.json", OnnxRuntime().setting)
    assert found.samples == FIRST * len(units_of(gm, couple(gm, INPUT))) + 1 and CALL in found.entries
    assert model.predict_ms({name: 8 for name in model.network.coupling.widths}) < model.predict_ms()
    again = latency_model(gm, INPUT, table=tmp_path / "t.json", limits=Limits(networks=FIRST, repeats=5))
    assert LatencyTable.load(tmp_path / "t.json").samples == found.samples
    assert again.steps() == model.steps()


def test_an_unknown_operator_falls_back_to_units_alone(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    """The unit with the unknown operator is exported by torch.onnx, here replaced by a stand-in."""
    import fxprune.latency.backends.onnx_runtime as module

    exported = []

    def stand_in(gm, inputs):
        exported.append(gm)
        return to_onnx(record(capture(nn.ReLU(), inputs[0]), inputs[0]))

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).cumsum(0))

    monkeypatch.setattr(module, "exported", stand_in)
    x = torch.randn(5, 6)
    gm = capture(Odd(), x)
    coupling = couple(gm, x)
    grid = {name: [8, size] for name, size in coupling.widths.items()}
    with caplog.at_level(logging.INFO):
        table = build(Network(gm, coupling, x, grid), OnnxRuntime(), limits=Limits(points=3, repeats=3))
    assert "one by one" in caplog.text and exported
    assert set(table.entries) == {CALL, *(unit.key for unit in units_of(gm, coupling))}


@pytest.mark.parametrize("how", [{"measure": lambda gm, inputs: 1.0}, {"backend": "eager"}, {"backend": "onnxruntime"}])
def test_a_table_draws_nothing_from_the_callers_generators(how: Any, tmp_path: Path) -> None:
    """Units are timed on random inputs, and whole networks as well."""
    net, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 1)).eval(),
        torch.randn(1, 3, 6, 6),
    )
    before = random_state()
    model = latency_model(net, x, table=tmp_path / "t.json", limits=Limits(points=3, repeats=2, networks=3), **how)
    model.measure(model.network.at({"0": 4}), x)
    assert random_state() == before


@pytest.mark.slow
def test_a_table_of_the_compiler(tmp_path) -> None:
    """Units compiled one by one; predictions calibrated by the network compiled whole; no second build."""
    x = torch.randn(1, 3, 24, 24)
    gm = capture(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU()).eval(), x)
    given: Any = {"table": tmp_path / "t.json", "backend": "compile", "limits": Limits(points=3, repeats=5)}
    try:
        model = latency_model(gm, x, **given)
    except BackendError as error:
        pytest.skip(f"no working compiler here: {error}")
    found = LatencyTable.load(tmp_path / "t.json", Compiled().setting)
    assert set(found.entries) == {CALL, *(unit.key for unit in units_of(gm, couple(gm, x)))}
    assert model.predict_ms() == pytest.approx(model.dense_ms)
    half = {name: size // 2 for name, size in model.network.coupling.widths.items()}
    assert 0 < model.predict_ms(half) < model.predict_ms()
    assert model.measure(model.network.at(half), x) > 0
    latency_model(gm, x, **given)
    assert LatencyTable.load(tmp_path / "t.json").samples == found.samples


def test_errors_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"fxprune\[onnx\]"):
        OnnxRuntime()
