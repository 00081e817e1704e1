"""What functions of the user's do to what they are handed stays with them: the network, its inputs, and the widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_search import EXAMPLE, FAST, batches, make
from torch import nn

import fxprune
from fxprune import Budget, export, netadapt, registries
from fxprune.errors import ConfigError, ExportError
from fxprune.io.lent import Lent, lent
from fxprune.latency.device import Setting
from fxprune.latency.timing import Timing


@pytest.fixture(autouse=True)
def _built_in_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("CRITERIA", "STRATEGIES", "BACKENDS", "EXPORTERS", "RESOURCES"):
        one = getattr(registries, registry)
        monkeypatch.setattr(one, "_items", {name: one._items[name] for name in one.built_in})


def halved(network: nn.Module) -> None:
    network.half()


def zeroed(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data.zero_()


def frozen(network: nn.Module) -> None:
    network.requires_grad_(False)


def replaced(network: nn.Module) -> None:
    for name in list(dict(network.named_children()))[:1]:
        setattr(network, name, nn.Identity())


def left_training(network: nn.Module) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(7)


CHANGES = [halved, zeroed, frozen, replaced, left_training]


class Untouched:
    """A network and an example, and what they were."""

    def __init__(self) -> None:
        self.model, self.example = make(), EXAMPLE.clone()
        self.before = self._facts()

    def _facts(self) -> tuple[object, ...]:
        modules = {name: (type(m), m.training) for name, m in self.model.named_modules()}
        tensors = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        flags = {name: (p.requires_grad, p.grad) for name, p in self.model.named_parameters()}
        return modules, flags, tensors

    def check(self) -> None:
        (modules, flags, tensors), (modules_now, flags_now, tensors_now) = self.before, self._facts()
        assert modules_now == modules and flags_now == flags and torch.equal(self.example, EXAMPLE)
        for name, tensor in tensors.items():  # type: ignore[attr-defined]
            assert tensors_now[name].dtype == tensor.dtype and torch.equal(tensors_now[name], tensor), name  # type: ignore[index]

    def search(self, budget: Budget, **changes: Any) -> fxprune.NetAdaptResult:
        return netadapt(self.model, budget, example_inputs=self.example, config=FAST.replace(**changes), progress=False)


@pytest.fixture
def untouched() -> Iterator[Untouched]:
    made = Untouched()
    yield made
    made.check()


def measured(change: Callable[[nn.Module], None]) -> Callable[[nn.Module, Any], float]:
    def measure(network: nn.Module, inputs: Any) -> float:
        ms = 1.0 + sum(p.numel() for p in network.parameters()) / 1000
        change(network)
        for leaf in inputs if isinstance(inputs, tuple) else (inputs,):
            leaf.zero_()
        return ms

    return measure


@pytest.mark.parametrize("change", CHANGES)
def test_a_function_that_measures(untouched: Untouched, change: Callable[[nn.Module], None], tmp_path: Path) -> None:
    settings = {"measure": measured(change), "table": str(tmp_path / "t.json"), "limits": {"networks": 4}}
    assert untouched.search(Budget("latency", ratio=0.8), latency=settings).met


class Board:
    """A backend of the user's own."""

    in_situ = False

    def __init__(self, change: Callable[[nn.Module], None]) -> None:
        self.setting = Setting("board", "", 0, {"processor": "none"})
        self.measure = measured(change)

    def prepare(self, gm: nn.Module, example_inputs: object) -> Callable[[], object]:
        return lambda: self.measure(gm, example_inputs)

    def time(self, gm: nn.Module, example_inputs: object, reference: object = None, repeats: int = 15) -> object:
        ms = self.measure(gm, example_inputs)
        return Timing(ms, ms, ms, 1)


def test_a_backend(untouched: Untouched, tmp_path: Path) -> None:
    fxprune.register_backend("board", lambda threads, device: Board(halved))
    settings = {"backend": "board", "table": str(tmp_path / "t.json"), "limits": {"networks": 4}}
    assert untouched.search(Budget("latency", ratio=0.8), latency=settings).met


@pytest.mark.parametrize(
    ("change", "calibration"),
    [*((change, None) for change in CHANGES), (CHANGES[0], batches()),
     *(pytest.param(change, batches(), marks=pytest.mark.slow) for change in CHANGES[1:])],
)  # fmt: skip
def test_a_criterion(untouched: Untouched, change: Callable[[nn.Module], None], calibration: Any) -> None:
    def first_units(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
        change(network)
        if statistics is not None:
            change(statistics.network)
        for item in group.slices:
            item.index[:] = item.index[::-1].copy()
        return -np.arange(group.size)

    def same(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
        return -np.arange(group.size)

    plans = [
        netadapt(
            untouched.model, 0.8, example_inputs=untouched.example, calibration=calibration, progress=False,
            config=FAST.replace(metrics=criterion, criterion=criterion, sweeps=0, refine=0),
        ).plan
        for criterion in (first_units, same)
    ]  # fmt: skip
    assert plans[0] == plans[1]


def test_gradients_of_a_criterion_are_its_own(untouched: Untouched) -> None:
    seen = []

    def by_gradient(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
        own = dict(network.named_parameters())
        seen.append(own[group.slices[0].tensor].grad)
        network.train()
        network(EXAMPLE).square().sum().backward()
        return np.arange(group.size)

    assert untouched.search(Budget("flops", ratio=0.8), metrics=by_gradient).met
    assert seen and all(gradient is None for gradient in seen)


def by_accumulated_gradient(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
    own = dict(network.named_parameters())
    made = [item for item in group.slices if item.role == "output" and own[item.tensor].dim() == 4]
    lost = own[made[0].tensor] * own[made[0].tensor].grad  # type: ignore[operator]
    return lost.detach().abs().flatten(1).sum(1).numpy()


@pytest.mark.parametrize("form", ["module", "graph"])
def test_gradients_that_were_accumulated_before_reach_a_criterion(form: Any) -> None:
    model = make()
    model(EXAMPLE).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    config = FAST.replace(metrics=by_accumulated_gradient)
    result = netadapt(model, 0.8, example_inputs=EXAMPLE, config=config, form=form, progress=False)
    assert all(np.isfinite(done.score) and done.score < 0 for done in result.rounds)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize("calibration", [None, batches()])
def test_groups_share_a_copy(calibration: Any) -> None:
    seen = []

    def first_units(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
        seen.append(network)
        return -np.arange(group.size)

    config = FAST.replace(metrics=first_units, criterion=first_units, sweeps=0, refine=0)
    netadapt(make(), 0.8, example_inputs=EXAMPLE, calibration=calibration, config=config, progress=False)
    assert len(seen) > 1 and len({id(network) for network in seen}) == 1


def test_gradients_reach_what_measures(tmp_path: Path) -> None:
    model, seen = make(), []
    model(EXAMPLE).square().sum().backward()

    def write(job: Any) -> None:
        seen.extend(p.grad is not None for p in job.network.parameters())
        np.savez(job.path, a=np.zeros(3))

    def receiver() -> None: ...

    seen.extend(p.grad is not None for p in lent(receiver, model, EXAMPLE)[0].parameters())
    fxprune.register_exporter(".npz", write)
    export(model, EXAMPLE, tmp_path / "net.npz")
    assert seen and all(seen)


def written_by_numpy(network: nn.Module) -> None:
    next(network.parameters()).detach().numpy()[:] = 3


def backward(network: nn.Module) -> None:
    network(EXAMPLE).square().sum().backward()


def set_attribute(network: nn.Module) -> None:
    network.factor = 3  # type: ignore[assignment]


def hooked(network: nn.Module) -> None:
    network.register_forward_hook(lambda *_: None)


def cached(network: nn.Module) -> None:
    network.cache["key"] = 1  # type: ignore[operator, index]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("change", [*CHANGES, written_by_numpy, backward, set_attribute, hooked, cached])
def test_a_copy_is_lent_until_it_is_changed(change: Callable[[nn.Module], None], gradients: bool) -> None:
    model = make()
    model.cache = {}  # type: ignore[assignment]
    if gradients:
        backward(model)
    giving = Lent(change, model)
    first = giving.network()
    assert first is not model and giving.network() is first
    with torch.no_grad():
        first.eval()(EXAMPLE)
    first.train(model.training)
    assert giving.network() is first  # nothing of it is another
    change(first)
    second = giving.network()
    assert second is not first and giving.network() is second
    assert Lent(netadapt, model).network() is model


@pytest.mark.parametrize("change", CHANGES)
def test_a_maker_of_resources(untouched: Untouched, change: Callable[[nn.Module], None]) -> None:
    def energy(subject: Any) -> Callable[..., Any]:
        change(subject.network)
        subject.example_inputs.zero_()

        def value(widths: dict[str, Any] | None = None) -> Any:
            found = subject.costs.macs(widths)
            (widths or {}).clear()
            return found

        return value

    fxprune.register_resource("energy", energy, unit="mJ", monotone=True)
    assert untouched.search(Budget("energy", ratio=0.7)).met


def test_a_strategy_that_writes_into_the_situation(untouched: Untouched) -> None:
    def widest(now: Any) -> list[dict[str, int]]:
        name = max(now.grids, key=now.widths.__getitem__)
        found = [{name: width} for width in now.grids[name].below(now.widths[name])]
        for mapping in (now.widths, now.start_widths, now.targets, now.limits, now.grids):
            mapping.clear()
        for lost in now.lost.values():
            lost[:] = 0
        return found

    given = Budget("flops", ratio=0.8)
    config = {"netadapt_min_feature_size": 2, "strategy": widest}
    result = netadapt(untouched.model, given, example_inputs=untouched.example, config=config, progress=False)
    assert result.met and result.rounds[0].achieved["flops"] > 0


@pytest.mark.parametrize("change", CHANGES)
def test_an_exporter(change: Callable[[nn.Module], None], tmp_path: Path) -> None:
    def write(job: Any) -> None:
        change(job.network)
        for tensor in job.inputs.args:
            tensor.zero_()
        np.savez(job.path, a=np.zeros(3))

    fxprune.register_exporter(".npz", write)
    model, example = make().eval(), EXAMPLE.clone()
    before = copy.deepcopy(model)
    export(model, example, tmp_path / "net.npz")
    assert torch.equal(example, EXAMPLE) and torch.equal(model(EXAMPLE), before(EXAMPLE))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_truths_rank_units() -> None:
    def needed(network: nn.Module, group: Any, statistics: Any = None) -> np.ndarray:
        return np.arange(group.size) >= group.size // 2

    result = netadapt(make(), 0.8, example_inputs=EXAMPLE, config=FAST.replace(metrics=needed), progress=False)
    chosen = result.rounds[0].chosen_group
    assert result.plan.keep[chosen][-1] == result.original_widths[chosen] - 1


def fails(*args: object, **named: object) -> Any:
    raise RuntimeError("out of memory on the cluster")


@pytest.mark.parametrize(
    ("key", "words"),
    [("metrics", r"criterion 'fails': group \S+ failed: RuntimeError: out of memory on the cluster \(test_lent"),
     ("strategy", r"strategy 'fails' failed: RuntimeError: out of memory on the cluster \(test_lent")],
)  # fmt: skip
def test_what_fails_is_named(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        netadapt(make(), 0.8, example_inputs=EXAMPLE, config=FAST.replace(**{key: fails}), progress=False)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_exporter_that_fails_is_named(tmp_path: Path) -> None:
    fxprune.register_exporter(".bad", fails)
    with pytest.raises(ExportError, match=r"the exporter of \.bad failed: RuntimeError: out of memory") as caught:
        export(make(), EXAMPLE, tmp_path / "net.bad")
    assert isinstance(caught.value.__cause__, RuntimeError) and not list(tmp_path.iterdir())
