"""Couplings: which positions belong to which unit, what they are called, what stays and why, and the evidence."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import doubled
from tiny import TABLE
from torch import Tensor, fx, nn

from passes import Coupling, Group, PlanError, PruneChannels, apply_plan, capture, couple, verify


def of(model: nn.Module, inputs: Any) -> tuple[fx.GraphModule, Coupling]:
    gm = capture(model.eval(), inputs)
    return gm, couple(gm, inputs)


def tiny(name: str) -> tuple[fx.GraphModule, Coupling]:
    row = TABLE[name]
    return of(row.make().double(), doubled(row.inputs()))


def where(group: Group) -> dict[str, list[list[int]]]:
    """The index sets of a group by ``tensor:dim``."""
    return {f"{s.tensor}:{s.dim}": np.sort(s.index, axis=1).tolist() for s in group.slices}


def test_a_chain_of_layers() -> None:
    _, coupling = of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)), torch.randn(1, 3, 8, 8)
    )
    (group,) = coupling.groups
    each = [[0], [1], [2], [3]]
    tensors = ("0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "1.running_mean:0", "1.running_var:0", "3.weight:1")
    assert where(group) == {tensor: each for tensor in tensors}
    roles = {f"{s.tensor}:{s.dim}": s.role for s in group.slices}
    assert roles["0.weight:0"] == "output" and roles["3.weight:1"] == "input" and roles["1.weight:0"] == "scale"
    assert {roles[t] for t in ("0.bias:0", "1.bias:0", "1.running_mean:0", "1.running_var:0")} == {"other"}


def test_a_flatten_spreads_a_unit_over_its_places() -> None:
    _, coupling = tiny("FlattenNchw")
    assert where(coupling.group("conv"))["fc.weight:1"][2] == list(range(18, 27))
    _, coupling = tiny("FlattenNhwc")
    assert where(coupling.group("conv"))["fc.weight:1"][2] == list(range(2, 72, 8))


def test_a_concatenation_has_offsets() -> None:
    _, coupling = tiny("NestedConcat")
    index = where(coupling.group("b"))
    assert index["c.weight:1"] == [[6], [7], [8], [9]]
    assert index["d.weight:1"] == [[12], [13], [14], [15]]
    assert where(coupling.group("a"))["d.weight:1"][0] == [0, 6]


def test_a_shuffle_moves_positions() -> None:
    """(2 4) becomes (4 2)."""
    _, coupling = tiny("ShuffleByView")
    outer, inner = coupling.groups
    assert where(outer)["conv1.weight:0"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert where(outer)["conv2.weight:1"] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert where(inner)["conv1.weight:0"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert where(inner)["conv2.weight:1"] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_heads_and_head_dims_of_a_fused_projection() -> None:
    _, coupling = tiny("FusedQkv")
    heads, dims = coupling.group("qkv"), coupling.group("qkv#2")
    assert where(heads)["qkv.weight:0"][1] == [*range(4, 8), *range(16, 20), *range(28, 32)]
    assert where(heads)["o.weight:1"][1] == [4, 5, 6, 7]
    assert where(dims)["qkv.bias:0"][0] == list(range(0, 36, 4))


def test_slices_name_tensors_of_the_state_dict() -> None:
    for name in ("TiedDecoder", "WeightNormNew", "BuffersAlongChannels", "Gru", "EncoderLayers"):
        gm, coupling = tiny(name)
        known = {
            n: t for n, t in (*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False))
        }
        for group in coupling.groups:
            for item in group.slices:
                if item.tensor in known:
                    assert item.index.max() < known[item.tensor].shape[item.dim]
                else:
                    assert item.tensor == "plain", "only a plain attribute is in neither"
            assert any(item.tensor in gm.state_dict() for item in group.slices)


def test_names_are_stable_and_ordered() -> None:
    for name in ("Residuals", "VisionTransformer", "ShuffleUnit"):
        first, second = tiny(name)[1], tiny(name)[1]
        assert list(first.widths) == list(second.widths) == [g.name for g in first.groups]
        assert len(set(first.widths)) == len(first.groups)
        assert first.fingerprint == second.fingerprint


def test_an_unknown_group_names_the_nearest() -> None:
    _, coupling = tiny("Residuals")
    assert coupling.group("short").size == 10
    with pytest.raises(PlanError, match="no group is called 'shortt'; did you mean 'short'"):
        coupling.group("shortt")


def test_what_stays_says_why_and_where() -> None:
    _, coupling = tiny("CustomOperator")
    frozen = {(f.tensor, f.dim): f for f in coupling.frozen}
    kept = frozen["conv1.weight", 0]
    assert (kept.start, kept.stop) == (0, 8)
    assert kept.node.startswith("halved") and "no rule says what this operator does" in kept.reason
    assert kept.source.startswith("sources.py:"), "the user's own line"
    assert str(kept).startswith(f"conv1.weight dim 0 [0:8]: {kept.node} (fxprune_tests.halved.default, sources.py:")
    assert "an input of the model" in frozen["conv1.weight", 1].reason
    assert "an output of the model" in frozen["conv2.weight", 0].reason
    assert "space or time" in frozen["conv1.weight", 2].reason


def test_an_unknown_operator_freezes_its_own_axes_alone() -> None:
    _, coupling = tiny("CustomOperator")
    assert coupling.widths == {"more": 6}


class Limited(nn.Module):
    """A number that is read off a tensor: nothing on the meta device can tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.third(self.second(torch.clamp(x, -1.0, x.amax().item())).relu())


def test_a_number_that_only_data_tell() -> None:
    inputs = torch.randn(5, 3)
    gm, coupling = of(Limited(), inputs)
    plan = coupling.plan({"first": (0, 2, 5), "second": (0, 3)})
    verify(gm, PruneChannels(plan)(gm).graph_module, plan, inputs)


def test_half_an_axis_may_stay() -> None:
    """A slice of the channels leaves the model; the others go."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv(x)
            return self.head(x), x[:, :3]

    _, coupling = of(Net(), torch.randn(2, 3, 4, 4))
    assert where(coupling.group("conv"))["conv.weight:0"] == [[3], [4], [5], [6], [7]]
    (kept,) = [f for f in coupling.frozen if (f.tensor, f.dim) == ("conv.weight", 0)]
    assert (kept.start, kept.stop) == (0, 3)


@dataclass
class Answer:
    """A class of the program's own, which no tree of torch looks into."""

    scores: Tensor
    features: Tensor


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Answer:
        features = self.b(self.a(x).relu())
        return Answer(self.head(features), features)


@pytest.mark.parametrize("form", ["graph", "module"])
def test_what_an_object_holds_is_an_output_too(form: str) -> None:
    torch.manual_seed(0)
    x, net = torch.randn(4, 3), Answering()
    network = capture(net) if form == "graph" else net
    coupling = couple(network, x)
    assert list(coupling.widths) == ["a"]
    plan = coupling.plan({"a": range(3)})
    found = apply_plan(network, plan)
    assert verify(network, found, plan, x).max_error < 1e-9
    assert found(x).scores.shape == (4, 4) and found(x).features.shape == (4, 6)


def test_coverage() -> None:
    _, coupling = of(
        nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 6), nn.Softmax(1), nn.Linear(6, 7), nn.Linear(7, 5)),
        torch.randn(2, 3),
    )
    coverage = coupling.coverage()
    assert coverage.macs == 1.0, "every matrix has a side that shrinks"
    held = {"every position depends on the others along this axis": 6, "an output of the model keeps its shape": 5}
    assert coverage.missing == held, "two biases are all that stays"
    assert coverage.params == 1 - 11 / (4 * 8 + 9 * 6 + 7 * 7 + 8 * 5)
    _, coupling = tiny("NothingToPrune")
    nothing = coupling.coverage()
    assert nothing.macs == nothing.params == 0.0
    assert sum(nothing.missing.values()) == 3 * 5 * 9 + 5
    _, coupling = tiny("SoftmaxOverChannels")
    assert any("depends on the others" in reason for reason in coupling.coverage().missing)


def test_the_evidence_is_a_graph() -> None:
    _, coupling = tiny("Residuals")
    graph = coupling.graph
    assert isinstance(graph, nx.Graph)
    assert graph.nodes["stem.weight:0"]["groups"] == ["stem"]
    parts = {frozenset(g for n in part for g in graph.nodes[n]["groups"]) for part in nx.connected_components(graph)}
    assert parts == {frozenset({"stem"}), frozenset({"a1"}), frozenset({"short"})}


def test_why_two_layers_shrink_together() -> None:
    _, coupling = tiny("Residuals")
    steps = coupling.explain("stem.weight:0", "a2.weight:0")
    assert any("aten.add" in step for step in steps)
    with pytest.raises(PlanError, match="stem.weight:0 and a1.weight:0 are not coupled"):
        coupling.explain("stem.weight:0", "a1.weight:0")
    with pytest.raises(PlanError, match="'head.weight:0' is no prunable axis"):
        coupling.explain("stem.weight:0", "head.weight:0")


def test_the_graph_carries_values_and_axes() -> None:
    gm, _ = tiny("ShuffleByView")
    for node in gm.graph.nodes:
        if node.op in ("call_module", "call_method") and isinstance(node.meta["val"], Tensor):
            assert [axis.size for axis in node.meta["axes"]] == list(node.meta["val"].shape)
    relu = next(n for n in gm.graph.nodes if n.name == "relu")
    assert str(relu.meta["axes"][1]).count("*") == 1, "a product, outer to inner, that can be read"


def test_example_inputs_in_every_form() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            y = self.b(self.a(x))
            return y if scale is None else y * scale

    x = torch.randn(2, 3)
    gm = capture(Net().eval(), x)
    couplings = [couple(gm, inputs) for inputs in (x, (x,), [x], {"x": x}, {"x": x, "scale": None}, x.to("meta"))]
    assert {c.fingerprint for c in couplings} == {couplings[0].fingerprint}
    assert all(c.widths == {"a": 8} for c in couplings)


def test_inputs_of_other_sizes_give_the_same_groups() -> None:
    model = TABLE["Residuals"].make().eval()
    first, second = (of(model, torch.randn(*shape))[1] for shape in ((1, 3, 8, 8), (3, 3, 16, 12)))
    assert first.widths == second.widths and first.fingerprint == second.fingerprint


def test_no_group_for_what_is_never_called() -> None:
    _, coupling = tiny("UnusedLayer")
    assert not any("unused" in s.tensor for g in coupling.groups for s in g.slices)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_context_does_not_matter(mode: Any) -> None:
    """Under inference mode torch decomposes less; the groups are the same."""
    for name in ("ShuffleUnit", "VisionTransformer", "Lstm"):
        expected = tiny(name)[1].widths
        with mode():
            assert tiny(name)[1].widths == expected


def test_the_callers_random_state_and_modes_are_left_alone() -> None:
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 5)).train(), torch.randn(2, 3)
    gm = capture(model, x)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    couple(gm, x)
    assert torch.equal(torch.get_rng_state(), state) and torch.backends.mha.get_fastpath_enabled() == fast
    assert gm.training and all(m.training for m in gm.modules())


def test_after_costs_no_analysis() -> None:
    """A round of the search needs milliseconds, however deep the network."""
    layers = [layer for _ in range(30) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    _, coupling = of(nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Conv2d(8, 5, 1)), torch.randn(1, 3, 8, 8))
    plan = coupling.plan({"0": (0, 1, 5)})
    start = time.process_time()
    after = coupling.after(plan)
    assert time.process_time() - start < 0.5
    assert after.widths == {**coupling.widths, "0": 3}


def test_functional_and_module_spellings_agree() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
            self.head = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(F.conv2d(x, self.weight, self.bias)).mean((2, 3)), self.head)

    _, coupling = of(Functional(), torch.randn(2, 3, 8, 8))
    (group,) = coupling.groups
    each = [[u] for u in range(8)]
    assert where(group) == {"weight:0": each, "bias:0": each, "head:1": each}
