"""Layers whose ATen calls are emitted: the tape is what running them records."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from passes import capture, couple
from passes.graph import emitted_layers as emitting
from passes.stream.graph_stream import Inferred, infer

X4, X3, X2 = torch.empty(2, 8, 6, 6), torch.empty(2, 5, 8), torch.empty(2, 8)
LAST = X4.to(memory_format=torch.channels_last)

LAYERS = [
    (nn.Conv1d(5, 4, 1), X3),
    *((nn.Conv2d(8, 4, 3, bias=bias, **how), X4) for bias in (True, False) for how in (
        {}, {"padding": (1, 2), "stride": 2}, {"padding": "same"}, {"groups": 4, "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
    )),
    (nn.Conv2d(8, 4, 3), X4[0]),
    (nn.Conv2d(8, 4, 3), LAST),
    (nn.Conv3d(2, 3, 2), X4.view(2, 2, 4, 6, 6)),
    *((nn.BatchNorm2d(8, **how), x) for x in (X4, LAST) for how in (
        {}, {"momentum": None, "affine": False}, {"track_running_stats": False}, {"eps": 1e-3},
    )),
    *((nn.BatchNorm1d(n), x) for n, x in ((8, X2), (5, X3))),
    *((nn.Linear(n, 3, bias), x) for bias in (True, False) for n, x in ((6, X4), (8, X3), (8, X2), (6, LAST))),
    (nn.Linear(8, 3), X2[0]),
    *((nn.LayerNorm(shape, **how), x) for how in ({}, {"elementwise_affine": False}, {"bias": False})
      for shape, x in ((6, X4), ((6, 6), X4), (8, X3), (6, LAST))),
    *((nn.MaxPool2d(*args, **how), x) for x in (X4, X4[0], LAST) for args, how in (
        ((2,), {}), ((3, 2, 1), {"ceil_mode": True}), (((2, 3), 2), {"padding": (1, 0)}), ((2, 1, 0, 2), {}),
    )),
    (nn.MaxPool2d(2, return_indices=True), X4),
    *((nn.AdaptiveAvgPool2d(size), x) for size in (1, (1, 1), 2, (3, None)) for x in (X4, X4[0], LAST)),
    *((kind(inplace), x) for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)
      for inplace in (True, False) for x in (X4, X2, LAST)),
    *((layer, X3) for layer in (nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(), nn.ELU())),
    *((layer, X3) for layer in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, True), nn.ELU(0.5, True))),
    *((layer, X4) for layer in (nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())),
    (nn.ReLU(), X4.to(torch.int64)),
    (nn.ReLU(), X4.half()),
    (nn.Linear(8, 3).half(), X3.half()),
]  # fmt: skip

FUNCTIONS = [
    *((f, (X4, other), {}) for f in (operator.add, operator.iadd, operator.mul, torch.add, torch.mul)
      for other in (X4, X4[:1], X4[:, :, :1, :1], 2.0, LAST, X4.double())),
    (torch.add, (X4, X4), {"alpha": 2}),
    *((f, (X4,), {}) for f in (F.relu, torch.relu)),
    (F.relu, (X4,), {"inplace": True}),
    (F.relu, (X4, True), {}),
    *((torch.cat, ([x, x], dim), {}) for x in (X4, LAST, X4.half()) for dim in (0, 1, -1)),
    *((F.linear, (x, torch.empty(3, x.shape[-1]), *bias), {})
      for x in (X3, X2, X4[..., :5], LAST.permute(0, 2, 3, 1)) for bias in ((), (None,), (torch.empty(3),))),
    (F.linear, (X3, X3.new_empty(8), X3.new_empty(())), {}),
    (torch.cat, ([X4, X4],), {}),
    *((torch.cat, ([X4, X4],), {"dim": dim}) for dim in (0, 1, -1)),
    *((f, (x, *args), how) for f in (torch.chunk, torch.Tensor.chunk) for x in (X4, LAST, X4.int(), X4[:0])
      for args, how in (((2,), {}), ((2, 1), {}), ((3,), {"dim": 1}), ((3, -1), {}), ((9, 0), {}))),
    (torch.cat, ([X4, X4[:0]], 0), {}),
    (torch.cat, ([X4, X4.double()], 1), {}),
    *((f, (left, right), {}) for f in (torch.matmul, torch.Tensor.matmul, operator.matmul)
      for left in (X4, X4[:1], X4.mT, LAST, X4.transpose(0, 1), X4.half()) for right in (left.mT, left, left[0])),
    *((f, (x, *dims), {}) for f in (torch.permute, torch.Tensor.permute) for x in (X3, X3.half(), X3.int())
      for dims in ((0, 2, 1), ((0, -1, 1),), ([2, 1, 0],)) if f is torch.Tensor.permute or len(dims) == 1),
    *((f, (X4, *dims), {}) for f in (torch.transpose, torch.Tensor.transpose) for dims in ((1, 2), (-1, 0))),
    *((f, (x, dim), {}) for f in (torch.unsqueeze, torch.Tensor.unsqueeze) for x in (X3, LAST) for dim in (0, -1)),
    *((torch.Tensor.view, (X4, *sizes), {}) for sizes in ((2, 8, 36), ((2, -1),), (torch.Size([16, 36]),))),
    (torch.Tensor.view, (X4, torch.int32), {}),
    *((torch.Tensor.unflatten, (x, *how), {}) for x in (X4, LAST, X4.int(), X4[:0]) for how in (
        (1, (2, 4)), (-3, [4, 2]), (1, (-1, 2)), (1, (8,)),
    )),
    *((torch.Tensor.split, (x, *args), how) for x in (X4, LAST, X4.int()) for args, how in (
        (([3, 5], 1), {}), (([3, 5],), {"dim": -3}), ((3, 1), {}), ((1,), {}), (((2, 4), -1), {}), ((9, 0), {"dim": 0}),
    ) if len(args) + len(how) < 3),
    *((torch.Tensor.__getitem__, (x, key), {}) for x in (X4, LAST, X4.int(), X4[:, ::2]) for key in (
        0, -1, slice(None), slice(1, 2), (slice(None), slice(None)), (slice(None), 2), (1, slice(-3, None), -1),
        (slice(0, 2), slice(0, 2), slice(0, 6)), (..., 1), None, (slice(None), slice(0, 99)), (slice(0, None, 2),),
        (slice(None), slice(2, 1)), (0, 0, 0, 0),
    )),
    *((torch.reshape, (x, sizes), {}) for x in (X4, LAST, X4[:, ::2]) for sizes in ((2, -1), [x.numel()])),
    *((torch.Tensor.reshape, (x, 2, -1, 3), {}) for x in (X4, LAST, X4.double())),
    *((torch.Tensor.contiguous, (x,), {}) for x in (X4, LAST, X4[:1], X4[:, ::2], LAST.int())),
    (torch.Tensor.contiguous, (X4,), {"memory_format": torch.channels_last}),
    *((F.dropout, (X4, *args), how) for args, how in (((), {"training": False}), ((0.2, False), {}), ((0.0,), {}))),
    *((F.softmax, (x, *args), how) for x in (X4, LAST, X4.half()) for args, how in (
        ((1,), {}), ((), {"dim": -1}), ((1,), {"dtype": torch.float64}),
    )),
]  # fmt: skip


def called(function, args: tuple, kwargs: dict) -> fx.GraphModule:
    """A graph of one call, its tensors as inputs."""
    graph, names = fx.Graph(), iter("abc")
    node = lambda leaf: graph.placeholder(next(names)) if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
    graph.output(graph.call_function(function, pytree.tree_map(node, args), kwargs))
    return fx.GraphModule(nn.Module(), graph)


def tape(found: Inferred) -> list[tuple]:
    """What an inference recorded, axes by their place of birth."""
    numbers: dict[int, int] = {}

    def axes(values) -> list[str]:
        resolved = [found.space.resolve(axis) for value in values for axis in value.axes]
        return [repr(axis) for axis in resolved] + [str(numbers.setdefault(v.key, len(numbers))) for v in values]

    return [
        (r.node, r.func, repr(r.template), axes(r.inputs), axes(r.outputs), [v.parameters for v in r.outputs],
         [v.label for v in r.outputs], repr(r.macs), repr(r.contracted), repr(r.mixed), repr(r.literals))
        for r in found.records
    ]  # fmt: skip


def compare(gm: fx.GraphModule, inputs: tuple, monkeypatch) -> None:
    """The tape and the results with layers and functions emitted, and with all of them run."""
    emitted = infer(gm, inputs)
    for name in ("_LAYERS", "EMITTED"):
        monkeypatch.setattr(emitting, name, {})
    run = infer(gm, inputs)
    assert tape(emitted) == tape(run)
    for name, other in run.vals.items():
        for one, two in zip(pytree.tree_leaves(emitted.vals[name]), pytree.tree_leaves(other), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers(number, monkeypatch):
    layer, x = LAYERS[number]
    compare(capture(nn.Sequential(layer), x), (x,), monkeypatch)


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_functions(number, monkeypatch):
    function, args, kwargs = FUNCTIONS[number]
    tensors = tuple(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor))
    compare(called(function, args, kwargs), tensors, monkeypatch)


KEYS = [0, slice(1, None), (slice(None), 2), (slice(0, 2), slice(0, 3)), (slice(None), -1, slice(-4, -2)), (0, 1, 2, 3)]


@pytest.mark.parametrize("number", [1, 2.5, True])
@pytest.mark.parametrize("key", [*KEYS, slice(None), (..., 1), None, (slice(0, 99),), (slice(None), slice(3, 3))])
def test_numbers_that_are_written(key, number, monkeypatch):
    class Writes(nn.Module):
        def forward(self, x):
            mask = torch.relu(x)
            mask[key] = number
            return mask + x

    def calls() -> list[tuple]:
        run = couple(Writes(), X4).structure.records
        return [(r.func, repr(r.template), [[a.size for a in v.axes] for v in (*r.inputs, *r.outputs)]) for r in run]

    emitted = calls()
    monkeypatch.delitem(emitting.EMITTED, torch.Tensor.__setitem__)
    assert emitted == calls()


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x)[:, :2]


def hooked() -> nn.Module:
    layer = nn.Linear(8, 3)
    layer.register_forward_hook(lambda module, args, result: result[:, :2])
    return layer


def replaced() -> nn.Module:
    layer = nn.Linear(8, 3)
    layer.forward = lambda x: F.linear(x, layer.weight)[:, :2]
    return layer


@pytest.mark.parametrize("make", [lambda: Halved(8, 3), hooked, replaced])
def test_a_layer_that_does_more_is_run(make):
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    gm = fx.GraphModule({"layer": make()}, graph)
    assert infer(gm, X2).vals["layer"].shape == (2, 2)


def test_the_tables_are_used(monkeypatch):
    def refuse(*args):
        raise AssertionError("run after all")

    model = capture(nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2)), X4)
    monkeypatch.setattr(torch.fx.Interpreter, "call_module", refuse)
    assert [str(record.func) for record in infer(model, X4).records] == [
        "aten.convolution.default", "aten.native_batch_norm.default", "aten.relu_.default",
        "aten.max_pool2d_with_indices.default",
    ]  # fmt: skip


def test_a_graph_may_read_what_a_parametrization_computes():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    graph = fx.Graph()
    x = graph.placeholder("x")
    called = graph.call_module("layer", (x,))
    graph.output(graph.call_function(F.linear, (x, graph.get_attr("layer.weight"), called)))
    gm = fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)
    assert infer(gm, X2).values["layer_weight"].parameters == {
        "layer.parametrizations.weight.original0", "layer.parametrizations.weight.original1",
    }  # fmt: skip


def test_a_weight_that_is_a_plain_attribute_is_followed_without_values():
    layer = nn.Conv2d(3, 8, 3)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    coupling = couple(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 9, 9))
    assert coupling.widths == {"0": 8}
    assert not coupling.module.real
