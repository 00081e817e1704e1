"""Plans: what is refused and in which words, JSON there and back, and chains that agree with one step."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import difference, random_plan, run
from torch import Tensor, fx, nn

from passes import Coupling, Plan, PlanError, PruneChannels, apply_plan, capture, couple, plan_of, verify


class Net(nn.Module):
    """Two groups in a row and a join."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, hidden, 3)
        self.head = nn.Conv2d(8 + hidden, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        return self.head(torch.cat([x[:, :, 1:-1, 1:-1], self.conv2(x)], 1))


INPUTS = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def build(hidden: int = 6) -> tuple[fx.GraphModule, Coupling]:
    torch.manual_seed(0)
    gm = capture(Net(hidden).double().eval(), INPUTS)
    return gm, couple(gm, INPUTS)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"conv9": (0, 1)}, r"no group is called 'conv9'; did you mean 'conv[12]'"),
        ({"head": (0, 1)}, "no group is called 'head'"),
        ({"conv1": ()}, "group 'conv1': no unit is kept; keep at least one of 8"),
        ({"conv1": (0, 3, 3)}, "group 'conv1': a unit is kept twice"),
        ({"conv1": (3, 0)}, "group 'conv1': kept units must be in ascending order"),
        ({"conv2": (0, 6)}, r"group 'conv2': kept units lie in 0\.\.5, got 0\.\.6"),
        ({"conv2": (-1, 2)}, r"group 'conv2': kept units lie in 0\.\.5, got -1\.\.2"),
        ({"conv2": (0.0, 1.0)}, "group 'conv2': kept units are integers"),
        ({"conv2": (True, 2)}, "group 'conv2': kept units are integers"),
        ({"conv2": np.array([0.5, 1.5])}, "group 'conv2': kept units are integers"),
    ],
)
def test_what_is_refused(keep: dict[str, Any], words: str) -> None:
    _, coupling = build()
    with pytest.raises(PlanError, match=words):
        coupling.plan(keep)
    with pytest.raises(ValueError):  # callers who know nothing of fxprune catch it too
        coupling.plan(keep)


@pytest.mark.parametrize("units", [[0, 2, 5], (0, 2, 5), np.array([0, 2, 5]), torch.tensor([0, 2, 5]), range(0, 6, 2)])
def test_what_is_accepted(units: Any) -> None:
    _, coupling = build()
    plan = coupling.plan({"conv2": units})
    assert plan.keep["conv2"] == tuple(int(u) for u in units)
    assert plan.keep["conv1"] == tuple(range(8)), "groups that are not named keep everything"
    assert plan.widths == {"conv1": 8, "conv2": 3}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": {"conv1": (0, 0, 1)}}, "group 'conv1': kept units are ascending, each once, in 0..7"),
        ({"keep": {"conv1": ()}}, "kept units are ascending, each once, in 0..7, and at least one"),
        ({"keep": {"conv1": (-1, 0, 1)}}, "kept units are ascending, each once, in 0..7"),
        ({"keep": {"conv1": (0, 99)}}, "kept units are ascending, each once, in 0..7"),
        ({"keep": {"conv1": (0.0, 1.0)}}, r"group 'conv1': units are integers, got 0\.0"),
        ({"keep": {"conv1": None}}, "group 'conv1': keep: got None; expected a tuple"),
        ({"keep": {"conv1": {0, 1}}}, "group 'conv1': keep: got a set of 2"),
        ({"keep": {"conv9": (0,)}}, "its sizes and keep do not name the same groups: 'conv9'"),
        ({"keep": None}, "its keep: got None; expected a mapping"),
        ({"fingerprint": None}, "'fingerprint' of the plan is None, expected a text"),
        ({"orders": {"conv1": ((0, 1),)}, "outers": {"conv1": ""}}, r"each row of its order holds all of 0\.\.7 once"),
        ({"orders": {"conv1": (tuple(range(8)),)}, "outers": {"conv1": ""}}, "cannot be chosen apart"),
        ({"orders": {"conv1": (tuple(range(8)),)}}, "its outers and orders do not name the same groups: 'conv1'"),
        ({"inputs": [7]}, "input 0: expected one of"),
        ({"removed_blocks": "conv1"}, "its removed_blocks: got the text 'conv1'; expected a tuple of names"),
    ],
)
@pytest.mark.parametrize("graph", [True, False])
def test_a_plan_made_by_hand_is_checked_where_it_is_applied(graph: bool, wrong: dict[str, Any], words: str) -> None:
    net = Net().double().eval()
    network = capture(net, INPUTS) if graph else net
    plan = couple(network, INPUTS).plan({"conv1": (0, 1, 2)})
    pruned = apply_plan(network, plan)
    if isinstance(wrong.get("keep"), dict):
        wrong = {"keep": {"conv2": plan.keep["conv2"], "conv1": plan.keep["conv1"], **wrong["keep"]}}
    made = replace(plan, **wrong)
    with pytest.raises(PlanError, match=words):
        apply_plan(network, made)
    with pytest.raises(PlanError, match=words):
        verify(network, pruned, made, INPUTS)


def test_json_there_and_back() -> None:
    _, coupling = build()
    for plan in (coupling.plan({}), random_plan(coupling, 1 / 2, 0)):
        again = Plan.from_json(plan.to_json())
        assert again == plan and again.to_json() == plan.to_json()


def test_json_can_be_compared_line_by_line() -> None:
    """One group a line, sorted: two plans differ in the lines of the groups that differ."""
    _, coupling = build()
    first = coupling.plan({"conv1": (0, 1, 4), "conv2": (1, 2)}).to_json().splitlines()
    second = coupling.plan({"conv1": (0, 1, 5), "conv2": (1, 2)}).to_json().splitlines()
    differing = [a for a, b in zip(first, second, strict=True) if a != b]
    assert len(differing) == 2 and "conv1" in differing[0] and "sha256" in differing[1]
    assert json.loads("\n".join(first))["groups"]["conv1"] == {"size": 8, "keep": [0, 1, 4]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "nonsense", "this is no plan of fxprune, or a damaged one: Expecting value"),
        (lambda text: "[1, 2]", "this is no plan of fxprune: expected a JSON object, got a list"),
        (lambda text: "{}", "this is no plan of fxprune: the plan has no 'format'"),
        (lambda text: "[" * 100_000, "or a damaged one: lists and objects are nested more than 64 deep"),
        (lambda text: text.replace('"format": 2', '"format": ' + "9" * 5000), "a number has 5,000 digits"),
        (lambda text: text.replace('"size": 8', '"size": 8, "size": 9'), "the name 'size' stands twice"),
        (lambda text: text.replace('"size": 8', '"size": NaN'), "NaN is not a number in JSON"),
        (lambda text: text.replace('"size": 8', '"size": 1e999'), "larger than any float64"),
        (lambda text: text.replace('"format": 2', '"format": 99'), "the plan has format 99, this version reads"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "the plan has an unknown entry 'sha256'"),
        (lambda text: text.replace('"keep"', '"kept"'), "group 'conv1' has no 'keep'"),
        (lambda text: text.replace('"size": 8', '"size": "many"'), "'size' of group 'conv1' is 'many'"),
        (lambda text: text.replace('"size": 8', '"size": 8.0'), "'size' of group 'conv1' is 8.0"),
        (lambda text: text.replace('"keep": [0, 1', '"keep": [1, 0'), "kept units are ascending"),
        (lambda text: text.replace('"keep": [0, 1', '"keep": [0.0, 1'), "units are integers, got 0.0"),
        (lambda text: text.replace('"keep": [0, 1, 2', '"keep": [0, 2'), "altered or damaged after it was written"),
        (lambda text: text.replace("[2, 3, 8, 8]", "[2, 3, 8, 9]"), "altered or damaged after it was written"),
        (lambda text: text.replace("[2, 3, 8, 8]", "[2, 3, -8, 8]"), "input 0: a shape holds sizes of at least 0"),
        (lambda text: text.replace("[2, 3, 8, 8]", f"[{2**40}]"), "more than any example input has"),
        (lambda text: text.replace("float64", "float65"), "input 0: torch has no dtype 'float65'"),
        (lambda text: text.replace('{"dtype": "float64", "tensor": [2, 3, 8, 8]}', "7"), "input 0: expected one of"),
    ],
)
def test_broken_json_is_refused(change: Any, words: str) -> None:
    _, coupling = build()
    with pytest.raises(PlanError, match=words):
        Plan.from_json(change(coupling.plan({}).to_json()))


def test_no_single_bit_of_a_plan_may_be_lost() -> None:
    _, coupling = build()
    whole = coupling.plan({"conv1": (0, 1, 4)}).to_json().encode()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(PlanError):
            Plan.from_json(bytes(damaged).decode("utf-8", errors="surrogateescape"))


def test_a_plan_of_the_first_format_is_read() -> None:
    """It had no checksum."""
    _, coupling = build()
    plan = coupling.plan({"conv1": (0, 1, 4)})
    data = json.loads(plan.to_json())
    del data["sha256"]
    assert Plan.from_json(json.dumps({**data, "format": 1})) == plan


def test_a_plan_for_another_network_is_refused() -> None:
    _, coupling = build()
    other, _ = build(hidden=7)
    with pytest.raises(PlanError, match=r"the plan is for graph \w+, got \w+ \(groups differ: conv2\)"):
        PruneChannels(coupling.plan({"conv1": (0, 1)}))(other)


def test_a_plan_for_a_changed_graph_is_refused() -> None:
    """The same groups, but a node more."""
    gm, coupling = build()
    plan = coupling.plan({"conv1": (0, 1)})
    relu = next(n for n in gm.graph.nodes if n.name == "relu")
    with gm.graph.inserting_after(relu):
        doubled = gm.graph.call_function(torch.tanh, (relu,))
    relu.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    gm.recompile()
    with pytest.raises(PlanError, match="the graphs differ, the groups do not"):
        PruneChannels(plan)(gm)


def test_a_stored_plan_prunes_a_fresh_network_without_data() -> None:
    gm, coupling = build()
    plan = random_plan(coupling, 1 / 2, 3)
    pruned = PruneChannels(plan)(gm).graph_module
    fresh = capture(Net().double().eval(), INPUTS)  # never coupled; the plan knows the input shapes
    fresh.load_state_dict(gm.state_dict())
    again = PruneChannels(Plan.from_json(plan.to_json()))(fresh).graph_module
    assert again.code == pruned.code
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), pruned.state_dict().values(), strict=True)
    )


def test_the_fingerprint_is_of_the_structure_and_not_of_the_weights() -> None:
    first, again = build()[1], build()[1]
    assert first.fingerprint == again.fingerprint
    assert build(hidden=7)[1].fingerprint != first.fingerprint


def test_chains_agree_with_one_step() -> None:
    gm, coupling = build()
    here, network, total = coupling, gm, coupling.plan({})
    for step in range(3):
        plan = random_plan(here, 3 / 4, step)
        network = PruneChannels(plan)(network).graph_module
        here, total = here.after(plan), total.then(plan)
        assert here.widths == plan.widths == total.widths
        assert here.fingerprint == coupling.after(total).fingerprint
        at_once = PruneChannels(total)(gm).graph_module
        assert difference(run(network, INPUTS), run(at_once, INPUTS)) == 0
        made_by = plan_of(network)
        assert made_by is not None and made_by.keep == total.keep
    assert [g.name for g in here.groups] == [g.name for g in coupling.groups]
    for a, b in zip(here.groups, couple(network, INPUTS).groups, strict=True):
        assert [(s.tensor, s.dim, s.index.tolist()) for s in a.slices] == [
            (s.tensor, s.dim, s.index.tolist()) for s in b.slices
        ], "after() gives what a fresh analysis of the pruned network gives"


def test_then_refuses_a_plan_of_another_network() -> None:
    _, coupling = build()
    first = random_plan(coupling, 1 / 2, 0)
    with pytest.raises(PlanError, match="not for the network that this plan makes"):
        first.then(coupling.plan({"conv1": (0, 1)}))


def test_then_refers_to_the_first_network() -> None:
    _, coupling = build()
    first = coupling.plan({"conv1": (1, 3, 5, 7)})
    second = coupling.after(first).plan({"conv1": (0, 3)})
    assert first.then(second).keep["conv1"] == (1, 7)


def test_a_plan_that_removes_nothing() -> None:
    gm, coupling = build()
    plan = coupling.plan({})
    assert not plan.narrows and plan.result_fingerprint == plan.fingerprint
    result = PruneChannels(plan)(gm)
    assert result.graph_module is gm and result.modified is False
