"""Units: keys that networks may share, coordinates that follow the widths, pieces that compute what they did inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from latency_nets import INPUT, Net
from torch import Tensor, fx, nn

from fxprune.latency.sampling import Network
from fxprune.latency.units import Coordinates, extract, units_of
from passes import PruneChannels, capture, couple


def coupled(model: nn.Module, x: Tensor):
    gm = capture(model.eval(), x)
    return gm, couple(gm, x)


def test_units_are_what_a_backend_fuses() -> None:
    units = units_of(*coupled(Net(), INPUT))
    assert [unit.nodes for unit in units] == [
        ("stem", "norm", "relu"),
        ("wide", "relu_1"),
        ("back", "add"),
        ("again", "relu_2"),
        ("home", "add_1"),
        ("mean",),
        ("head",),
    ]


def test_equal_shapes_share_a_key_and_no_key_has_a_name() -> None:
    units = {unit.name: unit for unit in units_of(*coupled(Net(), INPUT))}
    assert units["wide"].key == units["again"].key and units["back"].key == units["home"].key
    assert units["wide"].key != units["back"].key  # the one ends in a relu, the other in an addition
    assert not any(name in unit.key for unit in units.values() for name in units if name not in ("mean",))
    assert "1,a,12,12" in units["wide"].key and "float32" in units["wide"].key


def test_keys_tell_stride_padding_groups_and_dtype_apart() -> None:
    def key(layer: nn.Module, x: Tensor) -> str:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Flatten(), nn.LazyLinear(2)).to(x.dtype)
        model(x)
        return units_of(*coupled(model, x))[1].key

    x = torch.randn(1, 3, 9, 9)
    keys = [
        key(nn.Conv2d(8, 8, 3, padding=1), x),
        key(nn.Conv2d(8, 8, 3, padding=2, dilation=2), x),
        key(nn.Conv2d(8, 8, 3, padding=1, groups=8), x),
        key(nn.Conv2d(8, 8, 3, padding=1, groups=2), x),
        key(nn.Conv2d(8, 8, 3, padding=1, stride=2), x),
        key(nn.Conv2d(8, 8, 3, padding=1), x.double()),
        key(nn.Conv2d(8, 8, 3, padding=1), x[:, :, :8]),
    ]
    assert len(set(keys)) == len(keys)
    assert key(nn.Conv2d(8, 8, 3, padding=1), x) == keys[0]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"])
def test_coordinates_are_the_sizes_of_the_pruned_network(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    gm, coupling = coupled(torchvision.models.get_model(name, weights=None), x)
    units = units_of(gm, coupling)
    rng = np.random.default_rng(0)
    widths = {group: int(rng.integers(1, size + 1)) for group, size in coupling.widths.items()}
    values, scalar = Coordinates(coupling, units).at(widths)
    plan = coupling.plan({group: tuple(range(width)) for group, width in widths.items()})
    pruned = PruneChannels(plan)(gm).graph_module
    checked = 0
    for unit, value in zip(units, values, strict=True):
        module = dict(pruned.named_modules()).get(str(node_of(pruned, unit.nodes[0]).target))
        if isinstance(module, nn.Conv2d):
            sizes = {module.in_channels, module.out_channels, module.weight.shape[1]}
            assert set(value[0].tolist()) <= sizes
            checked += 1
    assert scalar and checked > 10
    arrays = {group: np.array([width, coupling.widths[group]]) for group, width in widths.items()}
    both, _ = Coordinates(coupling, units).at(arrays)
    for one, two in zip(values, both, strict=True):
        assert np.broadcast_to(two, (2, two.shape[1]))[0].tolist() == one[0].tolist()


def node_of(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.name == name)


def test_a_concatenation_counts_what_it_writes() -> None:
    x = torch.randn(1, 3, 64, 64)
    units = units_of(*coupled(torchvision.models.densenet121(weights=None), x))
    assert max(len(unit.coordinates) for unit in units) <= 3


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5", "vit"])
def test_pieces_compute_what_they_did_inside(name: str) -> None:
    """Each unit, run alone on the values that it had inside the network, gives what it gave there."""
    if name == "vit":
        model = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 40, num_classes=5)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    for module in model.modules():
        if hasattr(module, "inplace"):  # it would write over what is compared below
            module.inplace = False
    x = torch.randn(1, 3, 32 if name == "vit" else 64, 32 if name == "vit" else 64)
    gm, coupling = coupled(model, x)
    seen: dict[str, object] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Watch(gm, garbage_collect_values=False).run(x)
        for unit in units_of(gm, coupling):
            piece, inputs = extract(gm, unit.nodes, (x,))
            placeholders = [node.name for node in piece.graph.find_nodes(op="placeholder")]
            assert [seen[p].shape for p in placeholders] == [i.shape for i in inputs]
            outputs = piece.eval()(*(seen[p] for p in placeholders))
            names = [node.name for node in piece.graph.output_node().args[0]]
            for out, inner in zip(outputs, names, strict=True):
                if isinstance(out, Tensor):
                    assert torch.allclose(out, seen[inner], atol=1e-5), (unit.name, inner)


def test_units_cover_the_graph_once() -> None:
    x = torch.randn(1, 3, 64, 64)
    gm, coupling = coupled(torchvision.models.efficientnet_b0(weights=None), x)
    nodes = [name for unit in units_of(gm, coupling) for name in unit.nodes]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == {node.name for node in gm.graph.nodes if node.op not in ("placeholder", "output", "get_attr")}


def test_spans_reach_from_the_least_to_the_full_widths() -> None:
    gm, coupling = coupled(Net(), INPUT)
    grid = {name: [*range(8, size, 8), size] for name, size in coupling.widths.items()}
    spans = Network(gm, coupling, INPUT, grid).spans(0.02)
    assert ((8, 64, 8), (8, 96, 8)) in {span.axes for span in spans.values()}
