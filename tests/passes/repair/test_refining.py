"""Refinement of graphs as large models give them: exported, with outputs of any structure, with values that no weight
moves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from passes import PassError, PruneChannels, capture, couple, refine, verify
from passes.repair import fitting
from passes.statistics import Batch
from passes.statistics.divergence import divergence, outputs_of


@dataclass
class Answer:
    scores: Tensor
    hidden: Tensor


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x + shift)))


class Stream(nn.Module):
    """Blocks beside a shift that is made of the inputs' shape alone, and that every block reads."""

    def __init__(self, answer: type | None) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(6, 16), nn.ModuleList([Block(16, 24) for _ in range(5)])
        self.head, self.answer = nn.Linear(16, 4), answer

    def forward(self, x: Tensor) -> object:
        y, shift = self.embed(x), torch.arange(x.shape[1], device=x.device)[:, None] * 0.1
        for block in self.blocks:
            y = block(y, shift)
        scores = self.head(y)
        if self.answer is dict:
            return {"scores": scores, "hidden": [y]}
        return scores if self.answer is None else Answer(scores, y)


@pytest.mark.parametrize(
    ("frontend", "answer"), [("fx", None), ("fx", dict), ("fx", Answer), ("export", None), ("export", dict)]
)
def test_every_weight_is_refined_whatever_comes_out_and_wherever_the_graph_names_it(frontend, answer):
    torch.manual_seed(0)
    net, x = Stream(answer).eval(), torch.randn(120, 3, 6)
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=512)}}
    gm = capture(net) if frontend == "fx" else torch.export.export(net, (x[:4],), dynamic_shapes=shapes).module()
    coupling = couple(gm, x[:4])
    plan = coupling.plan({name: range(size * 3 // 4) for name, size in coupling.widths.items()})
    pruned = PruneChannels(plan)(gm).graph_module
    refined = refine(pruned, plan, gm, [x[:80]], held=[x[80:]])
    assert [s.why for s in refined.segments if not s.repaired] == []
    fitted = {name for segment in refined.segments for name in segment.parameters}
    assert fitted == {name for name, _ in pruned.named_parameters()}
    batches = [Batch((x[80:],))]
    dense = outputs_of(gm, batches)
    assert divergence(refined.network, batches, dense) < 0.7 * divergence(pruned, batches, dense)


class Residual(nn.Module):
    """As most networks write it: every ReLU and every sum in place, here of one of several kinds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.a = nn.ModuleList([nn.Conv2d(12, 16, 3, padding=1) for _ in range(3)])
        self.b = nn.ModuleList([nn.Conv2d(16, 12, 3, padding=1) for _ in range(3)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for a, b in zip(self.a, self.b, strict=True):
            x = self.after(x + b(torch.relu(a(x))))
        return self.head(x.mean((2, 3)))

    def after(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.relu(x)
        if self.kind == "function":
            return nn.functional.relu(x, True)
        if self.kind == "unused result":
            x.relu_()
        elif self.kind == "item":
            x[:, :, 0] = x[:, :, 0] * 0
            return torch.relu(x)
        return torch.relu(x)


@pytest.mark.parametrize("kind", ["module", "function", "unused result", "item"])
def test_what_works_in_place_is_refined_as_what_does_not(kind):
    torch.manual_seed(0)
    net, x = Residual(kind).eval(), torch.randn(60, 3, 6, 6)
    plain = Residual("plain").eval()
    plain.load_state_dict(net.state_dict())
    found, before = {}, x.clone()
    for name, network in (("in place", net), ("plain", plain)):
        gm = capture(network)
        coupling = couple(gm, x[:2])
        plan = coupling.plan({group: range(size * 3 // 4) for group, size in coupling.widths.items()})
        pruned = PruneChannels(plan)(gm).graph_module
        refined = refine(pruned, plan, gm, [x[:40]], held=[x[40:]])
        assert [s.why for s in refined.segments if "cannot be fitted" in s.why] == []
        assert sum(s.repaired for s in refined.segments) >= 3 and torch.equal(x, before)
        assert verify(gm, refined.network, plan, x[:2], trained=True).max_error < 1e-9
        again = refine(pruned, plan, gm, [x[:40]], held=[x[40:]])
        found[name] = [dict(one.network.named_parameters()) for one in (refined, again)]
        assert all(torch.equal(tensor, found[name][1][key]) for key, tensor in found[name][0].items())
    if kind != "item":
        for key, tensor in found["plain"][0].items():
            torch.testing.assert_close(found["in place"][0][key], tensor, rtol=1e-3, atol=1e-4)


class Functional(nn.Module):
    """Parameters are named between the operators, and the size of the batch is needed at the end."""

    def __init__(self) -> None:
        super().__init__()
        widths = [6, *([16, 20] * 10), 4]
        pairs = zip(widths[1:], widths[:-1], strict=True)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(a, b) * (2 / b) ** 0.5) for a, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        for weight in self.weights:
            x = nn.functional.linear(x, weight).relu()
        return x.view(size, -1)


def test_a_graph_is_cut_at_operators_not_at_the_parameters_between_them():
    torch.manual_seed(0)
    net, x = Functional().eval(), torch.randn(200, 6)
    gm = capture(net)
    assert len(gm.graph.find_nodes(op="get_attr")) == 21
    coupling = couple(gm, x[:2])
    plan = coupling.plan({name: range(size * 3 // 4) for name, size in coupling.widths.items()})
    refined = refine(PruneChannels(plan)(gm).graph_module, plan, gm, [x[:150]], held=[x[150:]])
    sizes = [len(segment.parameters) for segment in refined.segments]
    assert sum(sizes) == 21 and len(sizes) >= 3 and max(sizes) <= 9


def test_other_numbers_of_results_are_not_compared():
    """One row would broadcast to all of them."""
    with pytest.raises(RuntimeError, match=r"gives \(1, 4\) values, the dense network \(3, 4\)"):
        fitting.Target(torch.zeros(3, 4)).error(torch.zeros(1, 4))


def test_a_single_sample_is_not_enough_to_fit_and_to_judge():
    net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
    gm = capture(net)
    plan = couple(gm, x).plan({"0": range(4)})
    with pytest.raises(PassError, match="pass at least two samples"):
        refine(PruneChannels(plan)(gm).graph_module, plan, gm, [x])


@pytest.mark.parametrize("samples", [40, 400])
def test_a_weight_with_few_readings_keeps_what_it_has(samples):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(samples, 3)
    gm = capture(net)
    plan = couple(gm, x[:2]).plan({"0": range(30)})
    (segment,) = refine(PruneChannels(plan)(gm).graph_module, plan, gm, [x]).segments
    few = {"0.weight", "0.bias"}
    assert set(segment.parameters) == (few if samples == 40 else few | {"2.weight", "2.bias"})


@pytest.mark.parametrize("columns", [5, fitting._BLOCK + 1])
def test_the_moment_of_many_outputs_is_inverted_by_its_diagonal(columns):
    rows = torch.randn(1, 40, columns)
    found = fitting._inverse_moment(rows, 1e-2)
    assert found.shape == (1, columns, columns if columns == 5 else 1)
    moment = rows[0].mT @ rows[0] / 40
    diagonal = moment.diagonal() + 1e-2 * moment.diagonal().mean()
    if columns > 5:
        torch.testing.assert_close(found[0, :, 0], 1 / diagonal)
    else:
        damped = moment + 1e-2 * moment.diagonal().mean() * torch.eye(columns)
        torch.testing.assert_close(found[0] @ damped, torch.eye(columns), rtol=1e-3, atol=1e-3)
