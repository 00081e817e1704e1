"""Layers of torch in written source, and graphs of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_nets import Cnn, Vit, inputs_of
from torch import Tensor, fx, nn
from written_source import LeafTracer, traced, written

from fxprune.exporters.source.constructors import plain_class

LAYERS = [
    (nn.Conv1d(3, 4, 3, padding="same", dilation=2), (2, 3, 9)),
    (nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding=(1, 0), padding_mode="reflect"), (2, 3, 9, 8)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, bias=False), (2, 4, 5, 6)),
    (nn.BatchNorm1d(5, eps=1e-3, momentum=None, affine=False), (3, 5)),
    (nn.BatchNorm2d(5, track_running_stats=False), (3, 5, 4, 4)),
    (nn.LayerNorm((4, 5), elementwise_affine=False), (2, 4, 5)),
    (nn.LayerNorm(5, bias=False), (2, 5)),
    (nn.GroupNorm(2, 6, affine=False), (2, 6, 3)),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 4, 3, 3)),
    (nn.RMSNorm(5), (2, 5)),
    (nn.PReLU(4), (2, 4, 3)),
    (nn.GELU(approximate="tanh"), (2, 4)),
    (nn.LeakyReLU(0.2, inplace=True), (2, 4)),
    (nn.Hardtanh(-2.0, 3.0), (2, 4)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 4, 7, 7)),
    (nn.AvgPool2d((2, 3), count_include_pad=False), (2, 4, 7, 7)),
    (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 7, 7)),
    (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), (2, 4, 3, 3)),
    (nn.PixelShuffle(2), (2, 8, 3, 3)),
    (nn.Flatten(1, 2), (2, 3, 4, 5)),
    (nn.Unflatten(1, (2, 3)), (2, 6)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (2, 3, 4, 5)),
    (nn.Softmax(dim=-1), (2, 3)),
    (nn.GRU(4, 5, bias=False, batch_first=True), (2, 3, 4)),
    (nn.RNN(4, 5, nonlinearity="relu", batch_first=True), (2, 3, 4)),
    (nn.LSTM(4, 5, proj_size=3, batch_first=True), (2, 3, 4)),
    (nn.LSTMCell(4, 5), (2, 4)),
    (nn.TransformerEncoderLayer(4, 2, 7, dropout=0.2, activation="gelu", batch_first=True, norm_first=True), (2, 3, 4)),
    (nn.Identity(), (2, 3)),
    (nn.LocalResponseNorm(3, k=2.0), (2, 6, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[type(layer).__name__ for layer, _ in LAYERS])
def test_constructors_of_torch(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    gm = fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)
    _, module, _ = written(gm, torch.randn(shape), tmp_path)
    assert repr(module.load().layer) == repr(layer.eval())


class Smoothing(nn.Conv2d):
    """Makes a convolution in its own way, and is one."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width, bias=False)


class Doubling(nn.Conv2d):
    """Is not what it derives from."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return super()._conv_forward(*args) * 2


def test_subclasses_of_torchs_layers(tmp_path: Path) -> None:
    graph = traced(nn.Sequential(Smoothing(3)))
    text, _, _ = written(graph, torch.randn(2, 3, 5, 5), tmp_path)
    assert "nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)" in text and "Smoothing" not in text
    assert plain_class(Doubling(3, 4, 1)) is Doubling
    assert plain_class(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 3)) is nn.Linear


def test_multihead_attention_leaf(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, batch_first=True, dropout=0.1)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(q, k, v, need_weights=False)[0]

    given = (torch.randn(2, 3, 6), torch.randn(2, 7, 5), torch.randn(2, 7, 4))
    text, _, _ = written(Net(), given, tmp_path)
    assert "nn.MultiheadAttention(6, 2, dropout=0.1, kdim=5, vdim=4, batch_first=True)" in text


def test_attributes_set_after_construction_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(0.1))
    model[1].p = 0.4
    text, module, _ = written(model, torch.randn(2, 3, 5, 5), tmp_path)
    assert module.load().get_submodule("1").p == 0.4


def test_torchvision_leaves_come_with_the_file(tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

    norm = FrozenBatchNorm2d(3, eps=1e-4)
    norm.running_mean.uniform_()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, StochasticDepth(0.5, "row"))
    text, module, _ = written(traced(model), torch.randn(2, 3, 5, 5), tmp_path)
    assert "torchvision" not in text
    network = module.load().train()
    given = torch.ones(400, 3, 1, 1)
    whole = network.eval()(given)
    share = network.train()(given) / whole
    assert set(share.flatten().round(decimals=4).tolist()) == {0.0, 2.0}
    assert share.flatten(1).std(1).max() < 1e-6  # a row stays or goes as one


def test_exported_graphs(tmp_path: Path) -> None:
    example = inputs_of(Vit())
    model = Vit().eval()
    batch = torch.export.Dim("batch")
    gm = torch.export.export(model, (example,), dynamic_shapes={"x": {0: batch}}).module()
    text, module, _ = written(gm, example, tmp_path)
    assert "torch.ops" not in text and "_guards" not in text and "size = x.shape[0]" in text
    more = torch.cat([example] * 2)
    torch.testing.assert_close(module.load()(more), model(more), atol=1e-5, rtol=1e-5)


class Regions(nn.Module):
    """Parts without gradients and without autocast, as torch.export keeps them: graphs inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.first(x).cos()
            shift = scale + 1
        with torch.autocast("cpu", enabled=False):
            y = self.first(x) * scale
        return self.second(y) + shift.sum()


def test_graphs_inside_a_graph_are_written_in_place(tmp_path: Path) -> None:
    model, given = Regions(), torch.randn(3, 3)
    gm = torch.export.export(model, (given,)).module()
    _, module, _ = written(gm, given, tmp_path, dynamic_batch=False)
    network = module.load()
    torch.testing.assert_close(network(given), model(given))
    network(given).sum().backward()
    model(given).sum().backward()
    torch.testing.assert_close(network.first.weight.grad, model.first.weight.grad)
    outer = nn.Sequential(fx.symbolic_trace(Cnn()), nn.ReLU())
    nested = fx.GraphModule(outer, LeafTracer().trace(outer))
    assert any(
        isinstance(nested.get_submodule(str(n.target)), fx.GraphModule)
        for n in nested.graph.nodes
        if n.op == "call_module"
    )
    written(nested, inputs_of(Cnn()), tmp_path)


def test_exported_graphs_with_structured_inputs(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]], *, k: Tensor) -> dict[str, Any]:
            return {"a": x + pair[0], "b": [pair[1]["m"] * k, (x,)]}

    args = (torch.randn(2, 3), (torch.randn(2, 3), {"m": torch.randn(2, 3)}))
    gm = torch.export.export(Net(), args, {"k": torch.randn(3)}).module()
    given = {"k": torch.randn(3), "x": args[0], "pair": args[1]}
    _, module, _ = written(gm, given, tmp_path, dynamic_batch=False)
    expected, got = Net()(**given), module.load()(**given)
    assert torch.equal(got["a"], expected["a"]) and torch.equal(got["b"][0], expected["b"][0])
    assert isinstance(got["b"][1], tuple)
