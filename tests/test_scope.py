"""Pruning a part of a model whose outer code no tracer takes: costs, training and proofs see the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import Budget, export, load
from fxprune.carrier import Carrier, Part, record
from fxprune.errors import BudgetError, InputError
from fxprune.export import ExportError
from fxprune.resources import Counted
from fxprune.scope import captured_parts, netadapt_inside, prove_calls
from passes import EquivalenceError, PruneChannels, capture, couple

FAST = {"budget_reduce_rate_init": 0.3, "strategy": "uniform"}


class Pyramid(nn.Module):
    """Outer code in plain Python: a list of images, a loop, a head that is called once a level, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.body = nn.Sequential(
            nn.Conv2d(6, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(32, 8, 1)
        )
        self.head = nn.Sequential(nn.Conv2d(8, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 5, 1))

    def forward(self, images: list[Tensor], levels: int = 2) -> dict[str, Tensor]:
        features = self.body(self.stem(torch.stack(list(images))))
        found = {}
        while len(found) < levels:
            found[f"level{len(found)}"] = self.head(features).mean((2, 3))
            features = features[:, :, ::2, ::2]
        return found


def images(count: int = 2) -> tuple[list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return ([torch.randn(3, 12, 12, generator=generator) for _ in range(count)],)


def flops(model: nn.Module, *args: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*args)
    return counter.get_total_flops()


def total(model: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(value.square().sum() for value in model(*images()).values()))


@pytest.mark.parametrize("scope", ["body", ["body", "head"], ("head",)])
def test_the_whole_is_counted_and_only_the_scope_shrinks(scope: Any) -> None:
    model = Pyramid().eval()
    dense, before = flops(model, *images()), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = netadapt_inside(model, 0.8, scope, example_inputs=images(), config=FAST, progress=False)
    assert result.start["flops"] == dense
    assert result.achieved["flops"] == flops(result.model, *images()) <= 0.8 * dense
    names = [scope] if isinstance(scope, str) else list(scope)
    assert {name.split(".")[0] for name in result.original_widths} == set(names)
    after = result.model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), "the model that was passed is left as it is"
        if name.split(".")[0] not in names:
            assert torch.equal(after[name], tensor)
    assert set(result.model(*images())) == {"level0", "level1"}
    assert result.certificate.max_error <= result.certificate.tol
    assert type(result.model) is Pyramid and result.parts["head" if "head" in names else "body"].graph


def test_parameters_and_macs_of_the_whole() -> None:
    model = Pyramid()
    budgets = [Budget("params", ratio=0.8), Budget("macs", ratio=0.9)]
    result = netadapt_inside(model, budgets, "body", example_inputs=images(), config=FAST, progress=False)
    count = sum(p.numel() for p in model.parameters())
    assert result.start == {"params": count, "macs": flops(model, *images()) // 2}
    assert result.achieved["params"] == sum(p.numel() for p in result.model.parameters()) <= 0.8 * count


def test_the_removed_units_were_masked_in_the_whole() -> None:
    model = Pyramid().eval()
    result = netadapt_inside(model, 0.7, ["body", "head"], example_inputs=images(), config=FAST, progress=False)
    masked = Pyramid().eval()
    masked.load_state_dict(model.state_dict())
    state = masked.state_dict()
    for group in result.coupling.groups:
        gone = [unit for unit in range(group.size) if unit not in result.plan.keep[group.name]]
        assert not gone or max(gone) < group.size
        for where in group.slices:
            state[where.tensor].index_fill_(where.dim, torch.from_numpy(where.index[gone].ravel()), 0)
    for name, expected in masked(*images(3)).items():
        torch.testing.assert_close(result.model(*images(3))[name], expected, atol=1e-5, rtol=1e-5)


def test_training_sees_the_whole_and_its_changes_stay() -> None:
    model = Pyramid()
    seen = []

    def train(whole: nn.Module, steps: int) -> None:
        assert type(whole) is Pyramid and whole.training and whole.stem.training and whole.body.training
        optimizer = torch.optim.SGD(whole.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(value.square().sum() for value in whole(*images()).values()).backward()  # type: ignore[union-attr]
            optimizer.step()
        whole.stem[1].running_mean = whole.stem[1].running_mean + 0.5  # assigned anew, not changed in place

    def evaluate(whole: nn.Module) -> float:
        assert not whole.training and not whole.head.training
        seen.append(total(whole))
        return -seen[-1]

    config = {"netadapt_max_iter": 2, "budget_reduce_rate_init": 0.2, "netadapt_max_rounds": 2}
    result = netadapt_inside(
        model,
        0.75,
        ["body", "head"],
        example_inputs=images(),
        train=train,
        evaluate=evaluate,
        config=config,
        progress=False,
    )
    assert len(result.rounds) >= 1 and not result.data_free
    assert total(result.model.eval()) == pytest.approx(-result.score, rel=1e-6)
    assert not torch.equal(result.model.state_dict()["stem.0.weight"], model.state_dict()["stem.0.weight"])
    assert int(result.model.state_dict()["stem.1.num_batches_tracked"]) == 2 * len(result.rounds)
    for number, round in enumerate(result.rounds, 1):
        assert total(result.restore(number).eval()) == pytest.approx(-round.score, rel=1e-6)
    assert total(result.restore(0).eval()) == pytest.approx(total(model.eval()), rel=1e-6)


def test_modes_are_those_of_the_model() -> None:
    model = Pyramid().train()
    model.stem.eval()
    result = netadapt_inside(model, 0.9, "body", example_inputs=images(), config=FAST, progress=False)
    for name in ("", "stem", "stem.1", "body", "body.3", "head"):
        assert result.model.get_submodule(name).training == model.get_submodule(name).training
    assert model.training and not model.stem.training


class Tied(nn.Module):
    """The outer code reads a weight of the scope: the units of that weight must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6))
        self.again = nn.Linear(6, 24)
        self.again.weight = self.body[0].weight

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1e9):
            return x
        return self.body(x) + self.again(x).sum(1, keepdim=True)


def test_a_weight_that_the_outer_code_shares_stays_and_stays_tied() -> None:
    model = Tied().eval()
    result = netadapt_inside(model, 0.9, "body", example_inputs=torch.randn(4, 6), config=FAST, progress=False)
    assert result.model.again.weight.shape == (24, 6)
    assert result.model.again.weight is dict(result.model.named_parameters(remove_duplicate=False))["body.0.weight"]
    assert list(result.original_widths) == ["body.2"]


def test_the_whole_is_stored_and_comes_back(tmp_path: Path) -> None:
    model = Pyramid().eval()
    result = netadapt_inside(model, 0.7, ["body", "head"], example_inputs=images(), config=FAST, progress=False)
    for whole in (result.model, result.restore(len(result.rounds)).eval(), result.restore(0).eval()):
        report = export(whole, images(), tmp_path / "net.safetensors")
        again = load(Pyramid().eval(), report.path)
        assert type(again) is Pyramid
        for name, expected in whole(*images(3)).items():
            assert torch.equal(again(*images(3))[name], expected)
    with pytest.raises(ExportError, match="it prunes body, which is not in this one"):
        load(nn.Linear(2, 2), report.path)
    other = Pyramid()
    other.body[0] = nn.Conv2d(6, 32, 5, padding=2)
    with pytest.raises(ExportError, match=r"(?s)another network.*|does not fit.*"):
        load(other, report.path)


def test_keyword_and_plain_inputs_of_a_part() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 40), nn.Linear(40, 4)

        def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
            y = self.second(torch.relu(self.first(x))) * scale
            return y if shift is None else y + shift

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> float:
            return float(self.inner(x, scale=0.5, shift=torch.ones(4)).detach().sum())

    model = Outer()
    given = torch.randn(3, 6)
    result = netadapt_inside(model, 0.5, "inner", example_inputs={"x": given}, config=FAST, progress=False)
    assert isinstance(result.model(given), float)
    assert result.parts["inner"].get_submodule("first").weight.shape[0] < 40


def test_what_a_scope_cannot_be() -> None:
    model, options = Pyramid(), {"example_inputs": images(), "progress": False}
    for scope, message in [
        ("boddy", "no submodule of the model; among those that are: 'body'"),
        ([], "names no submodule"),
        (["body", "body.0"], r"lies inside \['body'\]"),
        (["body", "body"], "named twice"),
    ]:
        with pytest.raises(InputError, match=message):
            netadapt_inside(model, 0.5, scope, **options)
    with pytest.raises(InputError, match="scope needs example_inputs"):
        netadapt_inside(model, 0.5, "body", example_inputs=None)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(InputError, match="does not call 'spare'"):
        netadapt_inside(model, 0.5, "spare", **options)
    with pytest.raises(BudgetError, match="a budget of memory cannot be counted for the whole"):
        netadapt_inside(model, Budget("memory", ratio=0.5), "body", **options)
    given = Counted("memory", "bytes", lambda widths=None: 100 if widths is None else sum(widths.values()))
    result = netadapt_inside(model, Budget("memory", value=25), "body", resources=[given], config=FAST, **options)
    assert result.achieved["memory"] <= 25


def test_parts_that_cannot_be_captured_are_named() -> None:
    class Wild(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Linear(3, 3), Wild())
    with pytest.raises(InputError, match="scope '1' cannot be captured"):
        netadapt_inside(model, 0.5, "1", example_inputs=torch.randn(2, 3))


def test_a_part_that_serves_one_call_alone_is_caught() -> None:
    """The oracle of the last check: another graph than that of the pruned part must be found out."""
    model = Pyramid().eval()
    args = images()
    carrier = Carrier.of(model, captured_parts(model, ["head"], args, {}))
    graph = carrier.build()
    coupling = couple(graph, carrier.inputs)
    plan = coupling.plan({"head.0": tuple(range(7))})
    pruned = PruneChannels(plan)(graph).graph_module
    parts = {"head": carrier.part_of(pruned, 0)}
    prove_calls(carrier, pruned, parts)
    parts["head"].get_submodule("0").bias.data += 1  # shared with `pruned`: both move
    prove_calls(carrier, pruned, parts)
    wrong = {"head": capture(nn.Sequential(parts["head"], nn.Tanh()))}
    with pytest.raises(EquivalenceError, match="head: call 0"):
        prove_calls(carrier, pruned, wrong)


def test_a_recording_leaves_no_hook_and_no_mode_behind() -> None:
    model = Pyramid().train()
    calls = record(model, ["head"], images(), {"levels": 3})
    assert [call.args[0].shape[-1] for call in calls["head"]] == [12, 6, 3]
    assert model.training and not model.head._forward_pre_hooks
    part = Part("head", capture(model.head), tuple(calls["head"]))
    assert [value.shape[1] for call in part.calls for value in part.values(call)] == [8, 8, 8]
