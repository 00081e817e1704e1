"""What a result says of itself, and that it can be pickled, whatever form the network came in."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Budget, NetAdaptResult, finetune, netadapt
from fxprune.errors import InputError, JournalError
from fxprune.journal.read_run import read_run
from fxprune.journal.restoring import restored
from fxprune.search.before_after import stored_bytes
from passes.errors import SpecialisedWarning

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    ).eval()  # fmt: skip


def pruned(model: nn.Module, **options: Any) -> NetAdaptResult:
    return netadapt(model, Budget("macs", ratio=0.6), example_inputs=IMAGES[:1], progress=False, **options)


FORMS: dict[str, Callable[[], NetAdaptResult]] = {
    "module": lambda: pruned(net()),
    "graph": lambda: pruned(net(), form="graph"),
    "calibrated": lambda: pruned(net(), calibration=[IMAGES, IMAGES]),
    "averaged": lambda: pruned(torch.optim.swa_utils.AveragedModel(net()).eval()),
    "parallel": lambda: pruned(nn.DataParallel(net())),
    "compiled": lambda: pruned(torch.compile(net(), backend="eager")),  # type: ignore[arg-type]
    "with a score": lambda: pruned(net(), evaluate=lambda network: network(IMAGES).mean().detach()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_result_is_pickled_with_all_that_it_can_do(form: str) -> None:
    result = FORMS[form]()
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.model(IMAGES), result.model(IMAGES))
    assert type(again.model).__name__ == type(result.model).__name__
    assert str(again) == str(result) and again.before_after == result.before_after
    assert torch.equal(again.restore(1)(IMAGES), result.restore(1)(IMAGES))
    assert again.coupling.widths == result.coupling.widths
    tuned = finetune(again, [IMAGES], distill=1.0, epochs=1, progress=False)
    assert tuned.certificate is not None


def test_a_result_of_a_folder_is_pickled_and_finds_it_again(tmp_path: Path) -> None:
    result = pruned(net(), workdir=tmp_path)
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.restore(1)(IMAGES), result.restore(1)(IMAGES))


def test_both_networks_stand_side_by_side() -> None:
    result = FORMS["module"]()
    measures = {measure.name: measure for measure in result.before_after}
    assert list(measures) == ["macs", "params", "file", "score"]
    assert measures["macs"].after == result.achieved["macs"] and measures["macs"].before == result.start["macs"]
    for network, megabytes in ((result.dense, measures["file"].before), (result.model, measures["file"].after)):
        tensors = network.state_dict().values()
        assert 1e6 * megabytes == pytest.approx(sum(t.numel() * t.element_size() for t in tensors))
    assert measures["params"].after == sum(p.numel() for p in result.model.parameters())
    shown = str(result)
    assert "MACs" in shown and f"{result.achieved['macs']:,.0f}" in shown and "before" in shown
    assert repr(result).startswith("<NetAdaptResult of Sequential: macs 5") and len(repr(result)) < 100
    assert result._repr_html_().startswith("<table><tr><th></th><th>before</th>")


def test_a_budget_of_another_resource_has_a_row_of_its_own() -> None:
    result = netadapt(net(), Budget("memory", ratio=0.9), example_inputs=IMAGES[:1], progress=False)
    assert [measure.name for measure in result.before_after] == ["macs", "params", "file", "memory", "score"]


def test_tied_weights_are_stored_once() -> None:
    tied = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    tied[1].weight = tied[0].weight  # type: ignore[assignment]
    assert stored_bytes(tied) == 10 * 4 * 4


def test_a_plot_shows_the_rounds_over_a_budget() -> None:
    pytest.importorskip("matplotlib")
    result = FORMS["module"]()
    (axes,) = result.plot().axes
    line = max((line.get_xydata() for line in axes.lines), key=len)
    assert [tuple(point) for point in line] == [(100.0, result.baseline)] + [
        (100 * r.achieved["macs"] / result.start["macs"], r.score) for r in result.rounds
    ]
    with pytest.raises(InputError, match="got the text 'latency'; expected one of 'macs'"):
        result.plot("latency")


def test_rounds_are_not_built_from_a_network_that_has_changed() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(2, 4)
    result = netadapt(model, 0.5, example_inputs=x, progress=False)
    first, other = result.restore(1)(x), pickle.loads(pickle.dumps(result))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    for number in (0, 1):
        with pytest.raises(InputError, match=r"has changed since the search \(0.weight\), .* workdir=FOLDER"):
            result.restore(number)
    assert torch.equal(other.restore(1)(x), first)


class Scaled(nn.Module):
    """Two layers, with numbers, a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Linear(4, 16), nn.Linear(16, 2), nn.LeakyReLU(0.1)
        self.scale, self.table, self.kept = 1.0, torch.ones(2), None
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.act(self.first(self.norm(x)))
        return self.last(self.kept) * self.scale + self.table * torch.rand(2)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a factor": lambda model: setattr(model, "scale", 3.0),
    "a slope": lambda model: setattr(model.act, "negative_slope", 0.9),
    "a function": lambda model: setattr(model, "act", nn.ReLU()),
    "a hook": lambda model: model.act.register_forward_hook(lambda _module, _args, out: out * 2),
    "a plain tensor": lambda model: model.table.mul_(2),
    "a small number": lambda model: setattr(model.norm, "eps", 1.1e-5),
    "a layer that does not run": lambda model: setattr(model, "last", nn.Linear(3, 2)),
}


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a folder"])
@pytest.mark.parametrize("change", CHANGES)
def test_rounds_are_not_built_from_a_network_that_computes_something_else(
    change: str, kept: bool, tmp_path: Path
) -> None:
    model, x = Scaled(), torch.linspace(-2, 2, 8).reshape(2, 4)
    result = netadapt(model, 0.5, example_inputs=x, progress=False, workdir=tmp_path / "kept" if kept else None)
    model.train()(x)  # modes, gradients and what a program keeps of its calls are no part of its computation
    model.requires_grad_(False)
    assert result.restore(1) is not None and result.restore(0) is not None
    CHANGES[change](model)
    for number in (0, 1):
        with pytest.raises(InputError, match="computes something else than in the search: .*a slope|has changed since"):
            result.restore(number)
    with pytest.raises(InputError, match="computes something else|has changed since"):
        finetune(result, [(x, torch.zeros(2, dtype=torch.long))], round=1, epochs=1, progress=False)


class Lazy(Scaled):
    """Makes a table in its first call, keeps others by the size, and looks at its outputs at times."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.masks, self.calls = None, dict[object, Tensor](), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is None or len(self.positions) != len(x):
            self.positions = torch.linspace(0, 1, len(x))
        if x.shape not in self.masks:
            self.masks[x.shape] = torch.ones(x.shape).tril()
        self.calls += 1
        y = super().forward(x * self.masks[x.shape] + self.positions[:, None])
        if self.calls % 3 == 0:
            y.abs().mean()
        return y


@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("form", ["module", "pickled"])
def test_a_call_that_fills_tables_changes_nothing_of_what_rounds_are_built_from(called: bool, form: str) -> None:
    model, x = Lazy().eval(), torch.linspace(-2, 2, 8).reshape(2, 4)
    if called:
        model(x)
    result = netadapt(model, 0.5, example_inputs=x, progress=False)
    first = result.restore(1)(x)
    if form == "pickled":
        result = pickle.loads(pickle.dumps(result))
        model = result.dense
    for sizes in (2, 2, 3, 2, 5):
        model(torch.ones(sizes, 4))
        torch.manual_seed(1)
        again = result.restore(1)(x)
        torch.manual_seed(1)
        assert torch.equal(again, result.restore(1)(x)) and again.shape == first.shape
        assert isinstance(result.restore(0), Lazy)
    assert finetune(result, [(x, torch.zeros(2, dtype=torch.long))], round=1, epochs=1, progress=False) is not None
    model.act.negative_slope = 0.9
    with pytest.raises(InputError, match="computes something else"):
        result.restore(1)


@pytest.mark.parametrize("form", ["module", "pickled"])
def test_a_round_that_is_restored_repeats_no_warning_of_the_search(form: str) -> None:
    model, x = Lazy().eval(), torch.linspace(-2, 2, 8).reshape(2, 4)
    with pytest.warns(SpecialisedWarning):
        result = netadapt(model, 0.5, example_inputs=x, progress=False)
    result = pickle.loads(pickle.dumps(result)) if form == "pickled" else result
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpecialisedWarning)
        assert isinstance(result.restore(1), Lazy) and isinstance(result.restore(0), Lazy)


class Drawing(Scaled):
    """Leaves a part out where a number that it draws says so."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.rand(()) < 0.5 else super().forward(x).relu()


def test_a_network_that_draws_numbers_computes_the_same_at_each_analysis() -> None:
    for seed in range(4):  # of which two draw a number below 0.5
        torch.manual_seed(seed)
        result = netadapt(Drawing(), 0.5, example_inputs=torch.ones(2, 4), progress=False)
        torch.manual_seed(seed + 1)
        assert isinstance(result.restore(1), Drawing)


def test_rounds_of_a_folder_are_built_of_the_same_computation_alone(tmp_path: Path) -> None:
    def made(slope: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(slope), nn.Linear(16, 2))

    x = torch.randn(2, 4)
    result = netadapt(made(0.1), 0.5, example_inputs=x, workdir=tmp_path, progress=False)
    assert torch.equal(restored(read_run(tmp_path), made(0.1)).network(x), result.model(x))
    with pytest.raises(JournalError, match="computes something else than this Sequential"):
        restored(read_run(tmp_path), made(0.5))
