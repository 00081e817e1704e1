"""Backends of other runtimes: int8 in ONNX Runtime, OpenVINO, ExecuTorch; those that are missing are told by name."""

from __future__ import annotations

import importlib.util
import sys
import types
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from latency_nets import INPUT, Net
from torch import nn

from fxprune.latency import BackendError, measure_latency_ms
from fxprune.latency import device as measured
from fxprune.latency.backends.executorch_xnnpack import ExecuTorch
from fxprune.latency.backends.openvino_cpu import OpenVino
from fxprune.latency.backends.registry import find
from passes import capture

HAVE_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
onnx_only = pytest.mark.skipif(not HAVE_ONNX, reason="onnx and onnxruntime are not installed")


@onnx_only
def test_the_quantised_network_computes_nearly_the_same_in_integers() -> None:
    import onnx
    import onnxruntime

    from fxprune.latency.backends.onnx_int8 import input_names, quantised
    from fxprune.latency.backends.onnx_runtime import exported

    torch.manual_seed(0)
    gm = capture(Net().eval(), INPUT)
    model = exported(gm, INPUT)
    (name,) = input_names(model)
    small = quantised(model, [{name: np.random.default_rng(0).normal(size=INPUT.shape).astype("float32")}] * 4)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(small).graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8} and len(small) < 0.5 * len(model)
    (found,) = onnxruntime.InferenceSession(small).run(None, {name: INPUT.numpy()})
    wanted = gm(INPUT).detach().numpy()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@onnx_only
def test_int8_is_measured_under_its_own_name() -> None:
    backend = find("onnxruntime-int8", threads=1)
    assert str(backend.setting).startswith("onnxruntime-int8")
    assert backend.setting.slug != find("onnxruntime").setting.slug
    assert 0 < measure_latency_ms(Net().eval(), INPUT, backend="onnxruntime-int8").ms < 1000


@onnx_only
def test_the_integer_operators_of_a_profile_belong_to_the_network_s_nodes() -> None:
    from fxprune.latency.backends.protocol import InSitu

    gm = capture(Net().eval(), INPUT)
    backend = find("onnxruntime-int8")
    assert isinstance(backend, InSitu) and backend.in_situ
    profile = backend.profile(gm, INPUT, None, 7)
    layers = {"stem", "wide", "back", "again", "home", "head"}
    assert layers <= set(profile.nodes) <= {node.name for node in gm.graph.nodes}
    assert profile.ms.shape == (7, len(profile.nodes))
    assert (profile.ms[:, [profile.nodes.index(layer) for layer in layers]] > 0).all()


@onnx_only
def test_a_network_that_cannot_be_quantised_is_an_error() -> None:
    from fxprune.latency.backends.onnx_int8 import quantised

    with pytest.raises(BackendError, match="cannot quantise"):
        quantised(b"no network", [])


def test_openvino() -> None:
    pytest.importorskip("openvino")
    run = OpenVino(threads=1).prepare(Net().eval(), INPUT)
    assert next(iter(run().values())).shape == (1, 10)  # type: ignore[attr-defined]
    assert measure_latency_ms(Net().eval(), INPUT, backend="openvino").ms > 0
    gm = capture(Net().eval(), INPUT)
    profile = find("openvino").profile(gm, INPUT, None, 5)  # type: ignore[attr-defined]
    assert {"stem", "wide", "back", "again", "home", "head"} <= set(profile.nodes) <= {n.name for n in gm.graph.nodes}
    assert profile.ms.shape == (5, len(profile.nodes)) and profile.ms.sum() > 0


@pytest.mark.parametrize(
    ("missing", "backend", "extra"), [("openvino", "openvino", "openvino"), ("executorch", "executorch", "executorch")]
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, backend: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendError, match=rf"fxprune\[{extra}\]"):
        find(backend)


class Lowered:
    """What an export is lowered to, as a fake of ExecuTorch has it: it runs the exported module itself."""

    def __init__(self, exported: Any) -> None:
        self.buffer = exported.module()

    def to_executorch(self) -> Lowered:
        return self


class Program:
    """What the fake runtime loads. Its method, as a real one, reads the memory of the program and keeps none of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load_method(self, name: str) -> Any:
        program = weakref.ref(self)

        def execute(inputs: Any) -> list[Any]:
            held = program()
            assert held is not None, "the program is gone: the real runtime ends the process here"
            return [held.module(*inputs)]

        return types.SimpleNamespace(execute=execute) if name == "forward" else None


@pytest.fixture
def executorch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the runtime; the number of threads that it was given."""
    threads: list[int] = []
    parts: dict[str, dict[str, Any]] = {
        "extension.pybindings.portable_lib": {"_unsafe_reset_threadpool": threads.append},
        "version": {"__version__": "0.0.1"},
        "backends.xnnpack.partition.xnnpack_partitioner": {"XnnpackPartitioner": object},
        "exir": {"to_edge_transform_and_lower": lambda exported, partitioner: Lowered(exported)},
        "runtime": {"Runtime": types.SimpleNamespace(get=lambda: types.SimpleNamespace(load_program=Program))},
    }
    for name in parts:
        names = name.split(".")
        for count in range(len(names) + 1):
            place = ".".join(["executorch", *names[:count]])
            monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    for name, values in parts.items():
        place = f"executorch.{name}"
        module = types.ModuleType(place)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, place, module)
        above, _, last = place.rpartition(".")
        setattr(sys.modules[above], last, module)
    return threads


def test_executorch_runs_what_was_lowered(executorch: list[int]) -> None:
    network = Net().eval()
    backend = find("executorch", threads=2)
    assert executorch == [2] and str(backend.setting).startswith("executorch 0.0.1, 2 threads")
    (found,) = backend.prepare(network, INPUT)()  # type: ignore[misc]
    assert torch.allclose(found, network(INPUT))


def test_executorch_says_what_it_cannot_take(executorch: list[int]) -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BackendError, match="executorch cannot take the network"):
        ExecuTorch().prepare(Asks(), INPUT)


@pytest.mark.parametrize("device", ["zz", "cuda:77", "meta", "mps:9", ""])
@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_a_device_on_which_nothing_can_be_computed_is_refused(backend: str, device: str) -> None:
    with pytest.raises(BackendError, match=f"latency: device: torch cannot compute on '{device}' here"):
        find(backend, device=device)


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_a_network_on_another_device_than_is_named_is_refused(backend: str) -> None:
    made: Any = find(backend, device="cpu:0")
    assert made.setting == find(backend).setting
    with pytest.raises(BackendError, match=r"cpu is to be measured, and stem.weight of the network is on meta; move"):
        made.prepare(capture(Net().to("meta"), INPUT.to("meta")), INPUT)


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-int8", "openvino", "executorch"])
def test_backends_of_the_processor_measure_no_other_device(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="torch cannot compute on 'cuda:77' here"):
        find(backend, device="cuda:77")
    monkeypatch.setattr(measured, "present", torch.device)  # as where there is one
    with pytest.raises(BackendError, match=f"got 'cuda'; the backend {backend} measures on the cpu alone"):
        find(backend, device="cuda")
