"""Refinement of graphs as large models give them: exported, with outputs of any structure, with values that no weight
moves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from passes import PruneChannels, capture, couple, refine
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


@pytest.mark.parametrize("answer", [None, dict, Answer])
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_every_weight_is_refined_whatever_comes_out_and_wherever_the_graph_names_it(answer, frontend):
    if frontend == "export" and answer is Answer:
        pytest.skip("torch.export gives no object of an unknown class")
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


def test_other_numbers_of_results_are_not_compared():
    """One row would broadcast to all of them."""
    with pytest.raises(RuntimeError, match=r"gives \(1, 4\) values, the dense network \(3, 4\)"):
        fitting.Target(torch.zeros(3, 4)).error(torch.zeros(1, 4))


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
