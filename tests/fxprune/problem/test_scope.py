"""Parts of a model: a scope says where parameters may be cut; costs, training and proofs are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import Budget, NetAdaptResult, export, load, netadapt
from fxprune.errors import InputError
from fxprune.exporters import ExportError

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


def search(model: nn.Module, budget: Any, scope: Any, **changes: Any) -> NetAdaptResult:
    given = {"example_inputs": images(), "config": FAST, "progress": False}
    return netadapt(model, budget, scope=scope, **{**given, **changes})


def narrowed(result: NetAdaptResult) -> set[str]:
    return {name for name, width in result.widths.items() if width < result.original_widths[name]}


@pytest.mark.parametrize(
    ("scope", "touched"),
    [("body", {"body.0"}), (["body", "head"], {"body.0", "body.4", "head.0"}), (("head",), {"head.0"})],
)
def test_the_whole_is_counted_and_only_the_scope_shrinks(scope: Any, touched: set[str]) -> None:
    model = Pyramid().eval()
    dense, before = flops(model, *images()), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = search(model, 0.8, scope)
    assert result.start["flops"] == dense
    assert result.achieved["flops"] == flops(result.model, *images()) <= 0.8 * dense
    assert narrowed(result) and narrowed(result) <= touched  # with both, the boundary between them is free too
    names = [scope] if isinstance(scope, str) else list(scope)
    after = result.model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), "the model that was passed is left as it is"
        if name.split(".")[0] not in names:
            assert torch.equal(after[name], tensor)
    assert set(result.model(*images())) == {"level0", "level1"}
    assert result.certificate.max_error <= result.certificate.tol
    assert type(result.model) is Pyramid


def test_a_boundary_between_parts_of_the_scope_may_be_cut() -> None:
    result = search(Pyramid().eval(), 0.5, ["body", "head"])
    assert "body.4" in narrowed(result)
    assert result.model.head[0].in_channels == result.model.body[4].out_channels < 8


@pytest.mark.parametrize("resource", ["params", "macs", "memory"])
def test_every_resource_is_that_of_the_whole(resource: str) -> None:
    model = Pyramid().eval()
    whole = netadapt(model, Budget(resource, ratio=1.0), example_inputs=images(), progress=False)
    result = search(model, Budget(resource, ratio=0.9), "body")
    assert result.start == whole.start and result.achieved[resource] <= 0.9 * result.start[resource]
    if resource == "params":
        assert result.achieved["params"] == sum(p.numel() for p in result.model.parameters())


def test_training_sees_the_whole_and_its_changes_stay() -> None:
    model = Pyramid()

    def train(whole: Any, steps: int) -> None:
        assert type(whole) is Pyramid and whole.training and whole.stem.training and whole.body.training
        optimizer = torch.optim.SGD(whole.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(value.square().sum() for value in whole(*images()).values()).backward()
            optimizer.step()
        whole.stem[1].running_mean = whole.stem[1].running_mean + 0.5  # assigned anew, not changed in place

    def evaluate(whole: nn.Module) -> float:
        assert not whole.training
        return -total(whole)

    config = {"netadapt_max_iter": 2, "budget_reduce_rate_init": 0.2, "netadapt_max_rounds": 2}
    result = search(model, 0.75, ["body", "head"], train=train, evaluate=evaluate, config=config)
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
    result = search(model, 0.9, "body")
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
        return self.body(x) + self.again(x).sum(1, keepdim=True)


def test_a_weight_that_the_outer_code_shares_stays_and_stays_tied() -> None:
    result = search(Tied().eval(), 0.9, "body", example_inputs=torch.randn(4, 6))
    assert result.model.again.weight.shape == (24, 6)
    assert result.model.again.weight is dict(result.model.named_parameters(remove_duplicate=False))["body.0.weight"]
    assert narrowed(result) == {"body.2"}


class Rooms(nn.Module):
    """Parts with plain attributes that the whole reads, in a list: their names are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, b, 3, padding=1))
            for a, b in ((3, 16), (16, 16), (16, 4))
        )
        for number, part in enumerate(self.parts):
            part.source, part.number = -1, number

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x if part.source == -1 else x[part.source]) + 0 * part.number
        return x


def test_parts_keep_what_the_whole_reads_of_them() -> None:
    x = torch.randn(2, 3, 8, 8)
    result = search(Rooms().eval(), Budget("macs", ratio=0.7), ["parts.0", "parts.1"], example_inputs=x)
    assert result.model(x).shape == (2, 4, 8, 8) and [part.number for part in result.model.parts] == [0, 1, 2]


@pytest.mark.parametrize("graph", [False, True])
def test_the_scope_may_be_named_by_a_number(graph: bool) -> None:
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))

    model: nn.Module = nn.Sequential(block(), block()).eval()
    result = search(
        torch.fx.symbolic_trace(model) if graph else model, 0.7, "0", example_inputs=torch.randn(1, 3, 8, 8)
    )
    assert narrowed(result) == {"0.0"} and result.met


def test_the_whole_is_stored_and_comes_back(tmp_path: Path) -> None:
    result = search(Pyramid().eval(), 0.7, ["body", "head"])
    for whole in (result.model, result.restore(len(result.rounds)).eval()):
        report = export(whole, images(), tmp_path / "net.safetensors", plan=result.plan)
        again = load(Pyramid().eval(), report.path)
        assert type(again) is Pyramid
        for name, expected in whole(*images(3)).items():
            assert torch.equal(again(*images(3))[name], expected)
    other = Pyramid()
    other.body[0] = nn.Conv2d(6, 32, 5, padding=2)
    with pytest.raises(ExportError, match=r"(?s)another network.*|does not fit.*"):
        load(other, report.path)


def test_another_scope_is_another_search(tmp_path: Path) -> None:
    from fxprune.errors import JournalError

    search(Pyramid().eval(), 0.8, "body", workdir=tmp_path)
    with pytest.raises(JournalError, match="scope"):
        search(Pyramid().eval(), 0.8, ["body", "head"], workdir=tmp_path)


def test_what_a_scope_cannot_be() -> None:
    model = Pyramid().eval()
    for scope, message in [
        ("boddy", "no submodule of the model; among those that are: 'body'"),
        ([], "names no submodule"),
        (0, "scope: got 0"),
        ("stem", r"no group lies in the scope \['stem'\]: group 'stem.0' also cuts body.0.weight, which is outside"),
    ]:
        with pytest.raises(InputError, match=message):
            search(model, 0.5, scope)
    model.spare = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"no group lies in the scope \['spare'\]"):
        search(model, 0.5, "spare")
