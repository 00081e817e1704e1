"""The oracle is itself tested: honest prunings are certified, wrong ones are caught and their first node is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import Finding, assert_same, judge, random_plan, randomised, snapshot
from tiny import TABLE
from tiny.table import Stem
from torch import Tensor, fx, nn

from passes import (
    Certificate,
    Coupling,
    EquivalenceError,
    Plan,
    PlanError,
    PruneChannels,
    apply_plan,
    capture,
    couple,
    verify,
)
from passes.axes.expressions import Axis, concat, nest, permute
from passes.ops import Call, table

INPUTS = torch.randn(2, 3, 8, 8, dtype=torch.float64)
aten = torch.ops.aten


def analysed(model: nn.Module, inputs: Any = INPUTS) -> tuple[fx.GraphModule, Coupling]:
    torch.manual_seed(0)
    gm = capture(randomised(model.double()).eval(), inputs)
    return gm, couple(gm, inputs)


def pruned_by(gm: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    return PruneChannels(plan)(gm).graph_module


def halved(name: str) -> tuple[fx.GraphModule, fx.GraphModule, Plan]:
    """A tiny network, and half of it."""
    torch.manual_seed(0)
    gm, coupling = analysed(TABLE[name].make())
    plan = random_plan(coupling, 1 / 2, 0)
    return gm, pruned_by(gm, plan), plan


def test_a_certificate_says_what_was_done() -> None:
    gm, pruned, plan = halved("Residuals")
    certificate = verify(gm, pruned, plan, INPUTS, seed=3)
    assert isinstance(certificate, Certificate)
    assert certificate.max_error <= certificate.tol == 1e-9
    assert certificate.batch_sizes == (2, 3, 1) and certificate.runs == len(certificate.inputs) == 8
    assert certificate.inputs == ("the example", *certificate.sizes, "like the example", "normal random numbers")
    assert certificate.sizes == (
        "length 16 instead of 8 in one dimension",
        "length 16 instead of 8 in the other dimensions",
        "length 4 instead of 8",
        "batch of 3 instead of 2",
        "batch of 1 instead of 2",
    )
    assert certificate.outputs == 1 and certificate.finite == 1.0 and certificate.specialised == ()
    assert certificate.removed_units == 4 + 3 + 5 and certificate.mixed == () and not certificate.trained
    assert json.loads(json.dumps(certificate.to_dict()))["seed"] == 3
    assert verify(gm, pruned, plan, INPUTS, seed=3) == certificate


def test_mixed_groups_are_named() -> None:
    assert verify(*halved("ConvNextBlock"), INPUTS).mixed == ("conv1",)


def test_nothing_is_changed() -> None:
    """Float64 weights above all: a conversion that does not copy would write zeros into them."""
    gm, pruned, plan = halved("Residuals")
    before = snapshot(gm), snapshot(pruned)
    gm.train()
    verify(gm, pruned, plan, INPUTS)
    gm.eval()
    assert_same(snapshot(gm), before[0])
    assert_same(snapshot(pruned), before[1])


def test_a_network_with_its_batch_size_written_in() -> None:
    certificate = verify(*halved("HardCodedBatch"), INPUTS)
    assert certificate.batch_sizes == (2,) and "not proven for another batch" in certificate.note


def test_a_plan_for_another_network_is_refused() -> None:
    gm, pruned, _ = halved("Residuals")
    with pytest.raises(PlanError, match="the plan is for graph"):
        verify(gm, pruned, halved("UNet")[2], INPUTS)


# Wrong rules: each replaces a right one while the network is analysed.


def carried(call: Call) -> list[list[Axis]]:
    """As if the operator did nothing to its axes."""
    return [call.axes(call.tensors[0])]


def carried_twice(call: Call) -> list[list[Axis]]:
    return [call.axes(call.tensors[0])] * 2


def joined_backwards(call: Call) -> list[list[Axis]]:
    parts = [call.axes(t) for t in call["tensors"]]
    parts[0][1] = concat([axes[1] for axes in reversed(parts)])
    return [parts[0]]


def factors_exchanged(call: Call) -> list[list[Axis]]:
    """A view (n, g c, ...) -> (n, c, g, ...) read as if the outer factor were the inner one, and back."""
    axes, result = call.axes("self"), call.fixed()
    if len(result) > len(axes):
        inner, outer = call.factor(axes[1], result[1].size)
        return [[axes[0], outer, inner, *result[3:]]]
    return [[axes[0], nest([axes[1], axes[2]]), *result[2:]]]


def not_shuffled(call: Call) -> list[list[Axis]]:
    """(g c) -> (g c)."""
    batch, channels, *space = call.axes("self")
    outer, inner = call.factor(channels, channels.size // call["groups"])
    call.literal("groups", outer)
    return [[batch, nest([outer, inner]), *space]]


def summed(call: Call) -> list[list[Axis]]:
    """A mean taken for a sum."""
    axes = call.axes("self")
    call.contract(axes[1])
    return [[call.fixed()[1] if d == 1 else axis for d, axis in enumerate(axes)]]


def one_branch_forgotten(call: Call) -> list[list[Axis]]:
    """Concatenation that says nothing of its second operand's order: it is cut from a fresh variable."""
    parts = [call.axes(t) for t in call["tensors"]]
    whole = call.fresh(sum(axes[1].size for axes in parts))
    first, second = call.cut(whole, parts[0][1].size)
    call.tie(first, parts[0][1])
    turned = permute(parts[1][1], [*range(1, parts[1][1].size), 0])
    return [[parts[0][0], concat([first, turned]), *parts[0][2:]]]


class Mirrored(Stem):
    """A foreign operator that turns the channels round."""

    def middle(self, x: Tensor) -> Tensor:
        return mirrored(x)


@torch.library.custom_op("fxprune_tests::mirrored", mutates_args=())
def mirrored(x: Tensor) -> Tensor:
    """Channels in reverse order."""
    return x.flip(1)


mirrored.register_fake(torch.empty_like)
mirrored.register_autograd(lambda _, grad: grad.flip(1))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).mean(1, keepdim=True))


class Softmax(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return F.softmax(x, 1)


WRONG_RULES: dict[str, tuple[Any, Callable[[Call], Any], Callable[[], nn.Module], str]] = {
    "a reversal taken for identity": (aten.flip, carried, TABLE["FlipChannels"].make, "flip"),
    "a rotation taken for identity": (aten.roll, carried, TABLE["RollChannels"].make, "roll"),
    "a shuffle taken for identity": (
        aten.channel_shuffle,
        not_shuffled,
        TABLE["ShuffleByFunction"].make,
        "channel_shuffle",
    ),
    "factors in the wrong order": (aten.view.default, factors_exchanged, TABLE["ShuffleByView"].make, "view"),
    "operands in the wrong order": (aten.cat, joined_backwards, Joined, "cat"),
    "an index off by one": (aten.cat, one_branch_forgotten, Joined, "cat"),
    "identity for an unknown operator": (torch.ops.fxprune_tests.mirrored, carried, Mirrored, "mirrored"),
    "a scan taken for pointwise": (aten._softmax, carried, Softmax, "softmax"),
    "a sort taken for pointwise": (aten.sort, carried_twice, TABLE["SortedChannels"].make, "sort"),
    "a mean taken for a sum": (aten.mean, summed, Mean, "mean"),
}


@pytest.fixture
def rules_as_before() -> Iterator[None]:
    """What is looked up while a rule is wrong is forgotten after."""
    yield
    table._forget()


@pytest.mark.usefixtures("rules_as_before")
@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By verify, which names the first node that differs, and by the oracle of these tests."""
    operator, wrong, make, node = WRONG_RULES[name]
    monkeypatch.setitem(table._rules, operator, wrong)
    table._forget()
    gm, coupling = analysed(make())
    assert coupling.groups, "the wrong rule must offer something, or nothing is tested"
    plan = random_plan(coupling, 1 / 2, 1)
    pruned = pruned_by(gm, plan)
    with pytest.raises(EquivalenceError, match=f"node {node}\\w* .* is the first that differs: outputs differ by"):
        verify(gm, pruned, plan, INPUTS)
    monkeypatch.setattr("oracle.verify", lambda *_: None)
    with pytest.raises(AssertionError, match="outputs differ"):
        judge(Finding(gm, coupling), plan, INPUTS)


# Wrong results: each spoils a network that was pruned rightly.


def rows_moved(pruned: fx.GraphModule) -> None:
    pruned.conv1.weight.copy_(pruned.conv1.weight.roll(1, 0))


def one_statistic_of_another_channel(pruned: fx.GraphModule) -> None:
    pruned.norm1.running_mean[0] = 9.0


def a_bias_too_much(pruned: fx.GraphModule) -> None:
    pruned.head.bias[0] += 1e-6


def literal(pruned: fx.GraphModule, node: str, change: Callable[[fx.Node], None]) -> None:
    change(next(n for n in pruned.graph.nodes if n.name == node))
    pruned.recompile()


def split_exchanged(node: fx.Node) -> None:
    node.update_arg(1, node.args[1][::-1])


def padding_moved(node: fx.Node) -> None:
    *space, before, after = node.args[1]
    node.update_arg(1, [*space, before - 1, after + 1])


def view_exchanged(node: fx.Node) -> None:
    x, n, outer, inner, places = node.args
    node.args = (x, n, inner, outer, places)


WRONG_RESULTS: dict[str, tuple[str, Callable[[fx.GraphModule], None], str]] = {
    "a weight sliced wrongly": ("Cbam", rows_moved, "conv1"),
    "a wrong statistic": ("Residuals", one_statistic_of_another_channel, "norm1"),
    "a small error": ("Residuals", a_bias_too_much, "head"),
    "a wrong split": ("UnevenSplit", lambda p: literal(p, "split", split_exchanged), "split"),
    "a wrong shift": ("RollChannels", lambda p: literal(p, "roll", lambda n: n.update_arg(1, 0)), "roll"),
    "a wrong pad": ("OptionA", lambda p: literal(p, "pad", padding_moved), "pad"),
    "a wrong view": ("HardCodedChain", lambda p: literal(p, "view", view_exchanged), "view"),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_wrong_result_is_caught(name: str) -> None:
    network, spoil, node = WRONG_RESULTS[name]
    gm, pruned, plan = halved(network)
    verify(gm, pruned, plan, INPUTS)
    with torch.no_grad():
        spoil(pruned)
    with pytest.raises(EquivalenceError, match=f"node {node}\\w* .* is the first that differs: outputs differ by"):
        verify(gm, pruned, plan, INPUTS)


@pytest.mark.usefixtures("rules_as_before")
def test_a_scale_that_follows_the_head_dim_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its restatement attention divides by the root of the smaller head."""
    inputs = TABLE["AttentionBySdpa"].inputs().double()
    gm, coupling = analysed(TABLE["AttentionBySdpa"].make(), inputs)
    plan = coupling.plan({"q#2": (0, 2)})
    verify(gm, pruned_by(gm, plan), plan, inputs)
    monkeypatch.delitem(table._stated[torch.ops.aten.scaled_dot_product_attention], "literals")
    table.packet_traits.cache_clear()
    with pytest.raises(EquivalenceError, match="node scaled_dot_product_attention .* is the first that differs"):
        verify(gm, pruned_by(gm, plan), plan, inputs)


def test_an_output_of_another_shape_is_caught() -> None:
    gm, pruned, plan = halved("Residuals")
    pruned.head = nn.Linear(5, 6).double()
    with pytest.raises(EquivalenceError, match="node head .* is the first that differs"):
        verify(gm, pruned, plan, INPUTS)


def test_a_pruned_network_that_fails_at_another_batch_size_is_caught() -> None:
    gm, pruned, plan = halved("FlattenNchw")
    literal(pruned, "flatten", lambda n: n.replace_all_uses_with(_viewed(pruned, n)))
    with pytest.raises(EquivalenceError, match="fails on batch of 3 instead of 2, where the dense one runs"):
        verify(gm, pruned, plan, INPUTS)


def _viewed(pruned: fx.GraphModule, node: fx.Node) -> fx.Node:
    with pruned.graph.inserting_after(node):
        return pruned.graph.call_method("reshape", (node.args[0], 2, 4 * 9))


def test_the_wrong_units_are_caught() -> None:
    """The right sizes, from another plan."""
    gm, coupling = analysed(TABLE["Residuals"].make())
    first, second = coupling.plan({"stem": (0, 1, 2)}), coupling.plan({"stem": (0, 1, 3)})
    with pytest.raises(EquivalenceError, match="node stem .* is the first that differs"):
        verify(gm, pruned_by(gm, first), second, INPUTS)


def test_fine_tuned_weights_are_proven_as_they_are() -> None:
    for name in ("Residuals", "ConvNextBlock", "AttentionBySdpa", "Grouped", "TiedLinears"):
        inputs = TABLE[name].inputs().double()
        gm, coupling = analysed(TABLE[name].make(), inputs)
        plan = random_plan(coupling, 1 / 2, 0)
        pruned = pruned_by(gm, plan)
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.add_(torch.randn_like(parameter))
        certificate = verify(gm, pruned, plan, inputs, trained=True)
        assert certificate.trained and certificate.max_error <= 1e-9
        with pytest.raises(EquivalenceError):
            verify(gm, pruned, plan, inputs)


@pytest.mark.parametrize("form", ["graph", "module"])
def test_fine_tuned_weights_of_another_shape_are_named(form: str) -> None:
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
    dense = capture(model) if form == "graph" else model
    plan = couple(dense, x).plan({"0": tuple(range(8))})
    small = apply_plan(dense, plan)
    setattr(small, "2", nn.Linear(8, 5))
    words = r"2.weight has the shape \(5, 8\) in the pruned network; expected \(4, 8\), which the plan leaves of it"
    with pytest.raises(EquivalenceError, match=words):
        verify(dense, small, plan, x, trained=True)


def test_training_does_not_hide_a_wrong_literal() -> None:
    gm, pruned, plan = halved("UnevenSplit")
    literal(pruned, "split", lambda n: n.update_arg(1, n.args[1][::-1]))
    with pytest.raises(EquivalenceError, match="node split"):
        verify(gm, pruned, plan, INPUTS, trained=True)


def test_statistics_are_taken_over_the_units_that_survive() -> None:
    """The reference of a mixed operator, against torch's own operator on the kept positions."""
    kept = [0, 2, 3, 7]
    models: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "layer": (nn.LayerNorm(8), lambda x: F.layer_norm(x, (4,))),
        "rms": (nn.RMSNorm(8), lambda x: F.rms_norm(x, (4,))),
        "group": (nn.GroupNorm(1, 8), lambda x: F.group_norm(x, 1)),
    }
    x = torch.randn(3, 3, dtype=torch.float64)
    for norm, expected in models.values():
        model = nn.Sequential(nn.Linear(3, 8), norm, nn.Linear(8, 5)).double().eval()
        gm = capture(model, x)
        plan = couple(gm, x).plan({"0": kept})
        pruned = pruned_by(gm, plan)
        assert verify(gm, pruned, plan, x).mixed == ("0",)
        by_hand = expected(model[0](x)[:, kept]) @ model[2].weight[:, kept].T + model[2].bias
        torch.testing.assert_close(pruned(x), by_hand, rtol=1e-12, atol=1e-12)


class InSingle(nn.Module):
    """A network that computes a part in single precision by name, as attention often does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 40), nn.Linear(40, 30), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.tanh(self.first(x)).to(torch.float32))
        return self.last(torch.softmax(y @ y.mT, -1, dtype=torch.float32) @ y)


def test_precision_that_a_network_names_is_raised_in_both() -> None:
    inputs = torch.randn(2, 7, 6)
    for frontend in ("fx", "export"):
        gm = capture(InSingle().eval(), inputs, frontend)
        coupling = couple(gm, inputs)
        plan = random_plan(coupling, 1 / 2, 0)
        assert plan.narrows and verify(gm, pruned_by(gm, plan), plan, inputs).max_error < 1e-13


class BySize(nn.Module):
    """A network that is another one where images are higher, or wider, than the example and it is narrower."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dim, self.first, self.second = dim, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        more = x.shape[self.dim] > 8 and self.first.out_channels < 8
        return self.second(self.first(x).relu() * (2 if more else 1)).mean((2, 3))


@pytest.mark.parametrize("dim", [2, 3])
def test_every_dimension_of_an_image_has_another_size_in_a_proof(dim: int) -> None:
    net, x = BySize(dim).eval(), torch.randn(2, 3, 8, 8)
    plan = couple(net, x).plan({"first": range(5)})
    with pytest.raises(EquivalenceError, match="on length 16 instead of 8 in"):
        verify(net, apply_plan(net, plan), plan, x)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(4, 6), nn.Linear(6, 3)


class ByWidth(TwoLayers):
    """Asks whether there are more units than places: the cut network answers otherwise on some inputs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        return self.out(y.flip(1) if y.shape[2] > x.shape[1] else y).mean(1) * (1 if y.shape[2] > x.shape[1] else 2)


class ByBatch(TwoLayers):
    """Another network in train mode, for more samples than the example has."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        return self.out(y.flip(1) if self.training and len(x) > 2 else y)


@pytest.mark.parametrize(
    ("kind", "shape", "label"),
    [(ByWidth, (2, 9, 4), "length 4 instead of 9"), (ByBatch, (2, 4), "batch of 3 instead of 2, in train mode")],
)
def test_shorter_inputs_and_another_batch_in_train_mode_are_in_a_proof(
    kind: type[TwoLayers], shape: tuple[int, ...], label: str
) -> None:
    net, x = kind().eval(), torch.randn(shape)
    plan = couple(net, x).plan({"into": range(3)})
    with pytest.raises(EquivalenceError, match=f"on {label}"):
        verify(net, apply_plan(net, plan), plan, x)


class Windowed(TwoLayers):
    """Makes its window smaller for good where an input is smaller than it."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.weight = 8, nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        self.window = min(self.window, x.shape[1])
        y = self.into(x).unflatten(1, (-1, self.window)) * self.weight[:, None]
        return self.out(y.flatten(1, 2))


def test_what_a_program_keeps_of_a_small_input_is_not_there_for_the_next() -> None:
    net, x = Windowed().eval(), torch.randn(2, 8, 4)
    plan = couple(net, x).plan({"into": range(3)})
    certificate = verify(net, apply_plan(net, plan), plan, x)
    assert certificate.batch_sizes == (2, 3, 1) and "like the example" in certificate.inputs
