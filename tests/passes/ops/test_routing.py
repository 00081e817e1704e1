"""Mixtures of experts: whole experts with their rows of the router are a group, and a removed one is never chosen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_law import halves, proven
from torch import Tensor, nn

from passes import apply_plan, cost, couple, verify
from passes.errors import EquivalenceError, PlanError

EXPERTS, WIDTH, HIDDEN, CHOSEN = 5, 6, 7, 2
TOKENS = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0))


class Mixture(nn.Module):
    """Scores of a router, the best of them for each token, and what these experts make of it, by one of the ways below.

    removed: experts whose logits are minus infinity.
    """

    def __init__(self, run: Callable[..., Tensor], gate: str = "softmax", groups: int = 1) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.groups, self.run, self.gate = EXPERTS, CHOSEN, groups, run, gate
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.removed: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.removed:
            logits = logits.index_fill(1, torch.tensor(self.removed), -math.inf)
        scores = logits.softmax(-1) if self.gate == "softmax" else logits.sigmoid()
        weights, chosen = scores.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return x + self.run(self, x, weights, chosen)


def by_loop(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    mask = F.one_hot(chosen, self.num_experts + 1).permute(2, 1, 0)
    for (expert,) in mask.sum((1, 2)).gt(0).nonzero():
        if expert == self.num_experts:
            continue
        rank, token = torch.where(mask[expert])
        hidden = torch.relu(F.linear(x[token], self.up[expert], self.bias[expert]))
        made = F.linear(hidden, self.down[expert]) * weights[token, rank, None]
        result.index_add_(0, token, made)
    return result


def by_batch(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    flat = chosen.reshape(-1)
    rows = x.repeat_interleave(self.top_k, 0)
    hidden = torch.relu(torch.bmm(self.up[flat], rows[:, :, None])[..., 0] + self.bias[flat])
    made = torch.bmm(self.down[flat], hidden[:, :, None])[..., 0] * weights.reshape(-1, 1)
    return made.view(len(x), self.top_k, x.shape[1]).sum(1)


def by_mask(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    shares = torch.zeros(len(x), self.num_experts, dtype=x.dtype).scatter(1, chosen, weights)
    hidden = torch.relu(torch.einsum("ni,ehi->neh", x, self.up) + self.bias)
    return torch.einsum("neh,eoh,ne->no", hidden, self.down, shares)


def by_count(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    counts = torch.bincount(chosen.reshape(-1), minlength=self.num_experts)
    return by_batch(self, x, weights, chosen) * (counts * self.router.bias).sum()


def network(run: Callable[..., Tensor], **how: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Mixture(run, **how), nn.Linear(WIDTH, 3)).eval()


WAYS = [by_loop, by_batch, by_mask, by_count]


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__)
def test_experts_are_a_group(run: Callable[..., Tensor], gate: str) -> None:
    net = network(run, gate=gate)
    cut, coupling, _ = proven(net, TOKENS)
    group, hidden = sorted(coupling.groups, key=lambda group: group.size)
    assert (group.size, hidden.size) == (EXPERTS, HIDDEN)
    assert group.mixed and group.least == CHOSEN
    dims = {(item.tensor, item.dim) for item in group.slices}
    assert dims == {(f"0.{name}", 0) for name in ("router.weight", "router.bias", "up", "down", "bias")}
    assert cut[0].num_experts == 3 and cut[0].up.shape[0] == 3
    kept = {g.name: 1 for g in coupling.groups}
    assert cost(coupling).params(kept) < cost(coupling).params()


@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__)
def test_a_removed_expert_is_one_that_is_never_chosen(run: Callable[..., Tensor]) -> None:
    net = network(run)
    coupling = couple(net, TOKENS)
    masked = copy.deepcopy(net)
    masked[0].removed = [0, 3]
    experts = min(coupling.groups, key=lambda group: group.size).name
    cut = apply_plan(net, coupling.plan({experts: [1, 2, 4]}))
    with torch.no_grad():
        torch.testing.assert_close(cut(TOKENS), masked(TOKENS))
        assert not torch.allclose(cut(TOKENS), net(TOKENS))


def test_as_many_experts_stay_as_are_chosen() -> None:
    coupling = couple(network(by_batch), TOKENS)
    with pytest.raises(PlanError, match="1 units are kept; keep at least 2 of 5: so many experts are chosen"):
        coupling.plan({"0.router": [3]})
    all_chosen = network(by_batch)
    all_chosen[0].top_k = EXPERTS
    assert "all of its positions are chosen" in {f.reason for f in couple(all_chosen, TOKENS).frozen}


def test_the_proof_sees_an_expert_that_is_chosen_all_the_same() -> None:
    net = network(by_mask)
    coupling = couple(net, TOKENS)
    plan = coupling.plan(halves(coupling))
    cut = apply_plan(net, plan)
    verify(net, cut, plan, TOKENS)
    with torch.no_grad():
        cut[0].router.bias[0] += 3.0
        cut[0].router.bias[1] -= 3.0
    with pytest.raises(EquivalenceError):
        verify(net, cut, plan, TOKENS)


class Grouped(Mixture):
    """Experts in groups, of which the best are chosen first."""

    def __init__(self) -> None:
        super().__init__(by_batch, "sigmoid")
        self.num_experts, self.groups = 12, 3
        self.router = nn.Linear(WIDTH, 12)
        self.up, self.down = (nn.Parameter(torch.randn(12, *sizes)) for sizes in ((HIDDEN, WIDTH), (WIDTH, HIDDEN)))
        self.bias = nn.Parameter(torch.randn(12, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).sigmoid()
        inside = scores.view(-1, self.groups, self.num_experts // self.groups)
        of_groups = inside.topk(1, dim=-1)[0].sum(-1)
        best = of_groups.topk(2, dim=-1)[1]
        open_ = torch.zeros_like(of_groups).scatter(1, best, 1.0)[..., None].expand_as(inside).flatten(1)
        chosen = scores.masked_fill(open_ == 0, -math.inf).topk(self.top_k, dim=-1)[1]
        return x + by_batch(self, x, scores.gather(1, chosen), chosen)


def test_groups_of_experts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Grouped(), nn.Linear(WIDTH, 3))
    _, coupling, _ = proven(net, TOKENS, "0.router 3, 0.router#2 4, 0.up 7")
    assert coupling.group("0.router").least == 2


def by_number(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    for number in range(self.num_experts):
        share = ((chosen == number) * weights).sum(1, keepdim=True)
        hidden = torch.relu(F.linear(x, self.up[number], self.bias[number]))
        result = result + share * F.linear(hidden, self.down[number])
    return result


def by_value(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    return by_batch(self, x, weights * chosen, chosen)


def by_item(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    return by_batch(self, x, weights, chosen) * int(chosen[0, 0])


REFUSED = {
    by_number: "told apart by numbers of the program", by_value: "computed as values", by_item: "asked for as numbers",
}  # fmt: skip


@pytest.mark.parametrize("run", REFUSED, ids=lambda run: run.__name__)
def test_what_else_is_made_of_positions_keeps_the_experts(run: Callable[..., Tensor]) -> None:
    _, coupling, _ = proven(network(run), TOKENS, "0.up 7")
    assert any(REFUSED[run] in item.reason for item in coupling.frozen if item.tensor == "0.router.weight")


def test_softmax_and_topk_of_what_is_not_looked_up_keep_their_axis() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).softmax(-1).topk(3, -1)[0])

    coupling = couple(Sparse().eval(), TOKENS)
    assert coupling.groups == ()
    assert {item.tensor: item.reason for item in coupling.frozen}["a.bias"].startswith("every position depends")
