"""What the passes note of a graph is in its meta: copies and files have it, and loading them traces nothing."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from passes import PruneChannels, capture, couple, plan_of, verify
from passes.analysis.coupling import recall
from passes.graph.annotations import evidence_of, facts_of


class Net(nn.Module):
    """A convolution, attention with a mask, and calls in several spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor, scale: float = 2.0) -> Tensor:
        x = torch.relu(self.up(x)) * scale
        x = torch.nn.functional.gelu(x) + torch.ops.aten.tanh.default(x)
        return self.down(self.attention(x, x, value=x, key_padding_mask=mask)[0][:, -1])


INPUTS = (torch.randn(2, 6, 12), torch.zeros(2, 6, dtype=torch.bool))


def pruned_and_proven() -> fx.GraphModule:
    torch.manual_seed(0)
    gm = capture(Net().eval(), INPUTS)
    coupling = couple(gm, INPUTS)
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    pruned = PruneChannels(plan)(gm).graph_module
    verify(gm, pruned, plan, INPUTS)
    return pruned


def _saved(gm: fx.GraphModule) -> Any:
    file = io.BytesIO()
    torch.save(gm, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS: dict[str, Callable[[fx.GraphModule], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda gm: pickle.loads(pickle.dumps(gm)),
    "torch.save": _saved,
    "a copy's pickle": lambda gm: pickle.loads(pickle.dumps(copy.deepcopy(gm))),
    "pickled twice": lambda gm: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(gm)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_plan_certificate_and_evidence_travel_and_the_network_still_runs(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = pruned_and_proven()

    def traced(*_: Any, **__: Any) -> None:
        raise AssertionError("loading traced the network again")

    monkeypatch.setattr(fx.Tracer, "trace", traced)
    again = WAYS[way](pruned)
    assert plan_of(again) == plan_of(pruned) is not None
    assert facts_of(again).certificate == facts_of(pruned).certificate is not None
    assert evidence_of(again) == evidence_of(pruned) and "down.weight dim 1 (input)" in " ".join(evidence_of(again))
    assert torch.equal(again(*INPUTS), pruned(*INPUTS)) and torch.equal(
        again(INPUTS[0], mask=INPUTS[1], scale=2.0), again(*INPUTS)
    )
    assert [n.name for n in again.graph.nodes] == [n.name for n in pruned.graph.nodes]
    assert [n.stack_trace for n in again.graph.nodes] == [n.stack_trace for n in pruned.graph.nodes]
    assert list(again.state_dict()) == list(pruned.state_dict()) and again.training == pruned.training
    again.train()(*INPUTS).sum().backward()


def test_a_copy_has_the_same_analysis_and_a_file_is_analysed_anew() -> None:
    pruned = pruned_and_proven()
    assert recall(copy.deepcopy(pruned)) is recall(pruned) is not None
    loaded = pickle.loads(pickle.dumps(pruned))
    assert recall(loaded) is None
    groups = couple(loaded, INPUTS).groups
    assert [(g.name, g.size) for g in groups] == [(g.name, g.size) for g in recall(pruned).groups]  # type: ignore[union-attr]


def test_a_copy_that_is_pruned_again_has_the_plan_of_its_own() -> None:
    first = copy.deepcopy(pruned_and_proven())
    coupling = couple(first, INPUTS)
    plan = coupling.plan({coupling.groups[0].name: (0, 1)})
    assert plan_of(PruneChannels(plan)(first).graph_module) == plan


def test_facts_of_the_original_are_not_those_of_the_pruned_network() -> None:
    pruned = pruned_and_proven()
    gm = capture(Net().eval(), INPUTS)
    assert plan_of(gm) is None and facts_of(gm).certificate is None
    assert plan_of(capture(pruned)) is None, "captured anew it is the first of a chain"
