"""Every operator rule by its sample: exact by the oracle or left alone with a reason, and no rule without a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import Finding, examine, random_plan
from samples import ELSEWHERE, ON_VALUES, SAMPLES
from torch import fx, nn

from passes import PruneChannels, capture, couple, equation_rule, rule, verify
from passes.axes.expressions import Axis
from passes.errors import ArgumentError
from passes.ops import Call, DuplicateRule, Masked, find, table, traits_of, unregister
from passes.ops.table import states


def keys_of(finding: Finding) -> set[str]:
    """The entries of the registry that the network's operator calls were judged by."""
    return {key_of(record.func) for record in finding.coupling.structure.records}


def key_of(func: torch._ops.OpOverload) -> str:
    packet = func.overloadpacket
    functional = table._functional(packet)
    for known in (func, packet, packet._qualified_op_name, functional):
        if known is not None and known in table._rules:
            return name_of(known)
    return "pointwise" if torch.Tag.pointwise in func.tags else ""


OTHERWISE_IN_2_9 = {"_convolution": "it is called as aten.convolution", "aminmax": "it has no gradient"}


def name_of(operator: object) -> str:
    return str(operator).removeprefix("aten.")


@pytest.mark.parametrize("operator", SAMPLES)
def test_exact_or_left_alone(operator: str) -> None:
    if operator in OTHERWISE_IN_2_9 and torch.__version__.startswith("2.9."):
        pytest.skip(f"torch 2.9: {OTHERWISE_IN_2_9[operator]}")
    sample = SAMPLES[operator]
    finding = examine(sample.make(), torch.randn(sample.shape), (1 / 2,), counted=sample.counted)
    assert operator in keys_of(finding), f"the sample never calls {operator}: {sorted(keys_of(finding))}"
    assert finding.groups == sample.groups
    if sample.stays:
        assert any(sample.stays in f.reason for f in finding.coupling.frozen), [str(f) for f in finding.coupling.frozen]


@pytest.mark.parametrize("operator", ELSEWHERE)
def test_operators_of_other_devices_are_analysed_and_rewritten(operator: str) -> None:
    """On the meta device, where shapes are all there is: the groups are those of the operator's sibling on the CPU."""
    sample = ELSEWHERE[operator]
    inputs = torch.randn(sample.shape, device="meta")
    gm = fx.symbolic_trace(sample.make().eval().to("meta"))
    finding = Finding(gm, couple(gm, inputs))
    assert operator in keys_of(finding)
    assert finding.groups == sample.groups
    pruned = PruneChannels(random_plan(finding.coupling, 1 / 2, 0))(gm).graph_module
    assert pruned(inputs).shape == gm(inputs).shape


def test_every_rule_has_a_sample() -> None:
    rules = {name_of(operator) for operator in table._rules if not str(operator).startswith("fxprune_tests.")}
    assert rules - {"pointwise"} - ON_VALUES - set(SAMPLES) - set(ELSEWHERE) == set(), (
        "a new operator is one rule and one row in samples.py"
    )
    assert (set(SAMPLES) | set(ELSEWHERE)) - rules == set(), "rows of operators that have no rule"


def tagged() -> list[str]:
    """Functional operators that torch tags as pointwise, each with an overload of one to three tensors."""
    found = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        if name.endswith("_") or not hasattr(packet, "overloads"):
            continue
        if any(
            torch.Tag.pointwise in getattr(packet, o).tags and _plain(getattr(packet, o)) for o in packet.overloads()
        ):
            found.append(name)
    return found


def _plain(overload: torch._ops.OpOverload) -> bool:
    """Tensors first, everything else with a default, one tensor out."""
    given = [a for a in overload._schema.arguments if not a.has_default_value()]
    returned = [str(r.type) for r in overload._schema.returns]
    return (
        all(str(a.type) == "Tensor" for a in given) and returned == ["Tensor"] and "out" not in overload._overloadname
    )


def test_what_torch_tags_as_pointwise_is_pointwise() -> None:
    """Choosing positions before or after is the same: what one rule for all of them relies on."""
    names = tagged()
    assert len(names) > 100, "the tag is gone, or means something else"
    kept, refused = torch.tensor([0, 2, 3]), []
    for name in names:
        packet = getattr(torch.ops.aten, name)
        overload = next(getattr(packet, o) for o in packet.overloads() if _plain(getattr(packet, o)))
        count = sum(not a.has_default_value() for a in overload._schema.arguments)
        for values in ([torch.rand(2, 5) + 0.1] * count, [torch.randint(1, 4, (2, 5))] * count):
            operands = [v + n if v.dtype == torch.int64 else v / (n + 1) for n, v in enumerate(values)]
            try:
                whole = overload(*operands)
            except (RuntimeError, NotImplementedError):  # an operator of integers alone, or of floating point alone
                continue
            part = overload(*[t[:, kept] for t in operands])
            assert whole.shape == operands[0].shape, name
            assert torch.equal(whole[:, kept].nan_to_num(7.0), part.nan_to_num(7.0)), name
            break
        else:
            refused.append(name)
    assert len(refused) < 10, f"operators that could not be tried: {refused}"


@torch.library.custom_op("fxprune_tests::mix", mutates_args=())
def mix(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A user's own operator: channels of every place times a matrix."""
    return torch.einsum("nchw,cd->ndhw", x, weight)


@mix.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1], *x.shape[2:])


def _backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = ctx.saved_tensors
    return torch.einsum("ndhw,cd->nchw", grad, weight), torch.einsum("nchw,ndhw->cd", x, grad)


mix.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(7, 5, 1)
        self.weight = nn.Parameter(torch.randn(8, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(mix(torch.relu(self.conv(x)), self.weight)))


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The rule of `mix` does not outlive its test."""
    yield
    unregister(torch.ops.fxprune_tests.mix)


def test_a_users_operator_without_a_rule_is_left_alone() -> None:
    assert examine(Mixing(), torch.randn(2, 3, 4, 4)).groups == ""


@pytest.mark.usefixtures("forgotten")
def test_a_users_operator_in_one_line() -> None:
    equation_rule([torch.ops.fxprune_tests.mix], "n c *s, c d -> n d *s", ["x", "weight"])
    finding = examine(Mixing(), torch.randn(2, 3, 4, 4))
    assert finding.groups == "conv 8, weight 7"


@pytest.mark.usefixtures("forgotten")
def test_a_users_operator_by_a_function() -> None:
    @rule(torch.ops.fxprune_tests.mix)
    def rule_of_mix(call: Call) -> list[list[Axis]]:
        batch, channels, *space = call.axes("x")
        rows, columns = call.axes("weight")
        call.contract(call.tie(channels, rows))
        return [[batch, columns, *space]]

    assert examine(Mixing(), torch.randn(2, 3, 4, 4)).groups == "conv 8, weight 7"
    with pytest.raises(DuplicateRule, match="has a rule already .rule_of_mix.; remove one"):
        rule(torch.ops.fxprune_tests.mix)(rule_of_mix)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda call: [[call.axes("x")[7]]], "its rule does not fit this call: IndexError"),
        (lambda call: [call.axes("x")], "its rule does not fit this call: ValueError: it gives axes"),
        (lambda call: call["nothing"], "its rule does not fit this call: KeyError: 'nothing'"),
    ],
)
def test_a_rule_that_fails_freezes_with_its_error(wrong: Any, words: str) -> None:
    """A rule is somebody's code: its failure is a reason, never a crash."""
    rule(torch.ops.fxprune_tests.mix)(wrong)
    finding = examine(Mixing(), torch.randn(2, 3, 4, 4))
    assert finding.groups == ""
    assert any(words in f.reason for f in finding.coupling.frozen), {f.reason for f in finding.coupling.frozen}


def test_norms_of_any_order() -> None:
    """A zeroed unit would be the smallest, where the order is negative."""

    class Norm(nn.Module):
        def __init__(self, order: float) -> None:
            super().__init__()
            self.fc, self.head, self.order = nn.Linear(3, 8), nn.Linear(1, 5), order

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.linalg.vector_norm(self.fc(x), self.order, dim=1, keepdim=True))

    for order in (0, 0.5, 1, 2, 3, float("inf")):
        assert examine(Norm(order), torch.randn(4, 3)).groups == "fc 8"
    for order in (-1, float("-inf")):
        assert examine(Norm(order), torch.randn(4, 3)).groups == ""


@torch.library.custom_op("fxprune_tests::centred_heads", mutates_args=())
def centred_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """A user's own operator: each head's units around their mean, a number of heads among its arguments."""
    grouped = x.unflatten(1, (heads, -1))
    return (grouped - grouped.mean(2, keepdim=True)).flatten(1)


centred_heads.register_fake(lambda x, heads: torch.empty_like(x))


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.ops.fxprune_tests.centred_heads(self.a(x), 4))


def test_a_users_operator_with_traits() -> None:
    """It mixes units and takes a number of groups: its reference and its literal are stated at the rule."""

    def surviving(call: Masked) -> torch.Tensor:
        x, here = (t.unflatten(1, (call["heads"], -1)) for t in (call["x"], call.present()))
        mean = (x * here).sum(2, keepdim=True) / here.sum(2, keepdim=True).clamp_min(1)
        return ((x - mean) * here).flatten(1)

    @rule(torch.ops.fxprune_tests.centred_heads, zeros=True, reference=surviving)
    def rule_of_heads(call: Call) -> list[list[Axis]]:
        batch, channels = call.axes("x")
        heads, units = call.factor(channels, channels.size // call["heads"])
        call.mix(units)
        call.literal("heads", heads)
        return [[batch, call.space.resolve(channels)]]

    try:
        x = torch.randn(2, 3)
        gm = capture(Centred().eval(), x)
        coupling = couple(gm, x)
        assert [(g.name, g.size, g.mixed) for g in coupling.groups] == [("a", 4, False), ("a#2", 3, True)]
        plan = coupling.plan({"a": (0, 2, 3), "a#2": (0, 2)})
        pruned = PruneChannels(plan)(gm).graph_module
        verify(gm, pruned, plan, x)
        assert pruned.a.out_features == 6
        with pytest.raises(DuplicateRule):
            rule(torch.ops.fxprune_tests.centred_heads)(rule_of_heads)
        rule(torch.ops.fxprune_tests.centred_heads, override=True)(rule_of_heads)  # without its reference
        assert [g.size for g in couple(gm, x).groups] == [4]
    finally:
        unregister(torch.ops.fxprune_tests.centred_heads)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("first", ["overload", "packet", "name"])
@pytest.mark.parametrize("second", ["overload", "packet", "name"])
def test_one_operator_has_one_rule_however_it_is_named(first: str, second: str) -> None:
    packet = torch.ops.fxprune_tests.mix
    keys = {"overload": packet.default, "packet": packet, "name": "fxprune_tests::mix"}

    def of_first(call: Call) -> list[list[Axis]]:
        return [call.fixed()]

    def of_second(call: Call) -> list[list[Axis]]:
        return [call.fixed()]

    try:
        rule(keys[first])(of_first)
        with pytest.raises(DuplicateRule, match="has a rule already .of_first"):
            rule(keys[second])(of_second)
        assert find(packet.default) is of_first, "nothing of what was refused stays"
        rule(keys[second], override=True)(of_second)
        assert find(packet.default) is of_second
    finally:
        unregister(*keys.values())
    assert find(packet.default) is None
    rule(keys[second])(of_second)
    unregister(keys[second])


def test_what_has_no_rule_of_its_own_takes_one() -> None:
    """relu is covered as a pointwise operator, and relu_ by its functional variant; overloads are apart."""
    relu = torch.ops.aten.relu
    before = find(relu.default), find(relu_ := torch.ops.aten.relu_.default)
    try:
        rule(relu)(of_packet := lambda call: [call.fixed()])
        rule(relu_)(of_in_place := lambda call: [call.fixed()])
        assert (find(relu.default), find(relu_)) == (of_packet, of_in_place)
        rule(relu.default, override=True)(of_default := lambda call: [call.fixed()])
        assert (find(relu.default), find(relu.out)) == (of_default, of_packet)
    finally:
        unregister(relu, relu.default, relu_)
    assert (find(relu.default), find(relu_)) == before


def test_a_built_in_rule_of_an_overload_is_in_the_way_of_one_of_its_packet() -> None:
    with pytest.raises(DuplicateRule, match=r"aten.max has a rule already .*, of aten.max\.d"):
        rule(torch.ops.aten.max)(lambda call: [call.fixed()])


def test_a_built_in_rule_is_replaced_with_all_that_it_stated() -> None:
    stated = dict(table._stated[torch.ops.aten.glu])
    before = find(torch.ops.aten.glu.default)
    try:
        rule(torch.ops.aten.glu, override=True)(lambda call: [call.fixed()])
        assert traits_of(torch.ops.aten.glu.default).zeros is None
    finally:
        rule(torch.ops.aten.glu, override=True, **stated)(before)
    assert find(torch.ops.aten.glu.default) is before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"zero": True}, "'zero' is no trait; there are "),
        ({"zeros": "yes"}, "zeros: got the text 'yes'; expected True, False or a claim"),
        ({"reference": 3}, "reference: got 3; expected a function"),
    ],
)
def test_a_wrong_trait_is_refused_where_it_is_stated(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        rule(torch.ops.fxprune_tests.mix, **wrong)
    assert find(torch.ops.fxprune_tests.mix.default) is None


def test_what_is_stated_of_a_packet_hides_nothing_of_its_overloads():
    """Rules of ONNX are stated of packets when a backend is first used; sizes in calls are restated as before."""
    packet = torch.ops.aten.view
    before = table.packet_traits(packet).literals
    own = dict(table._stated.get(packet, {}))
    assert before is not None
    try:
        states(packet, fuses=False)
        assert table.packet_traits(packet).literals is before and table.packet_traits(packet).fuses is False
    finally:
        table._stated[packet] = own
        if not own:
            del table._stated[packet]
        table._forget()
