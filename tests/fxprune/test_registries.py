"""What users add from outside, in a few lines each, through Python and by name."""

from __future__ import annotations

import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from small_search import EXAMPLE, FAST, batches, make, negative_loss, run

import fxprune
from fxprune import Budget, FineTune, NetAdaptConfig, export, netadapt, registries
from fxprune.criteria.registry import Ranking
from fxprune.errors import BudgetError, ConfigError, PluginWarning
from fxprune.training.candidate import Trained
from fxprune.workers.protocol import Outcome


@pytest.fixture(autouse=True)
def _built_in_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests and examples have registered in this process is not there, and nothing stays."""
    for registry in ("CRITERIA", "STRATEGIES", "BACKENDS", "WORKERS", "EXPORTERS", "RESOURCES"):
        one = getattr(registries, registry)
        monkeypatch.setattr(one, "_items", {name: one._items[name] for name in one.built_in})


def last_units(network, group, statistics=None):  # type: ignore[no-untyped-def]
    return np.arange(group.size)


def test_a_criterion() -> None:
    fxprune.register_criterion("last units", last_units)
    named, itself = (run(config=FAST.replace(metrics=metrics)) for metrics in ("last units", last_units))
    assert "last units" in fxprune.list_criteria()
    kept = named.plan.keep[named.rounds[0].chosen_group]
    assert kept[-1] == named.original_widths[named.rounds[0].chosen_group] - 1
    assert named.plan == itself.plan
    with pytest.raises(ConfigError, match="expected 12 finite numbers, one a unit"):
        run(config=FAST.replace(metrics=lambda network, group, statistics=None: np.arange(3)))


def test_a_strategy_also_by_yaml(tmp_path: Path) -> None:
    def widest(now):  # type: ignore[no-untyped-def]
        name = max(now.grids, key=now.widths.__getitem__)
        return [{name: width} for width in now.grids[name].below(now.widths[name])]

    fxprune.register_strategy("widest", widest)
    (tmp_path / "config.yml").write_text("strategy: widest\nnetadapt_min_feature_size: 2\nbudget_ratio: 0.8\n")
    result = netadapt(make(), example_inputs=EXAMPLE, config=tmp_path / "config.yml", progress=False)
    assert result.rounds[0].widths["tail"] < 18

    def wrong(now):  # type: ignore[no-untyped-def]
        return [{"tail": 17.5}]

    with pytest.raises(fxprune.FxpruneError, match=r"proposes 17.5 units for group 'tail'; allowed are \["):
        netadapt(make(), 0.8, example_inputs=EXAMPLE, config=FAST.replace(strategy=wrong), progress=False)


def energy(subject):  # type: ignore[no-untyped-def]
    calls = subject.costs.operators
    return lambda widths=None: sum(2.3e-9 * c.macs(widths) + 1.1e-8 * c.elements(widths) for c in calls)


def test_a_resource_as_a_sum_over_operators() -> None:
    with pytest.raises(BudgetError, match="unknown resource 'energy'"):
        Budget("energy", ratio=0.5)
    fxprune.register_resource("energy", energy, unit="mJ", format=".3g", monotone=True)
    result = netadapt(make(), Budget("energy", ratio=0.6), example_inputs=EXAMPLE, config=FAST, progress=False)
    assert result.met and result.achieved["energy"] <= 0.6 * result.start["energy"]
    assert "energy" in fxprune.list_resources() and " mJ (" in result.summary()


def test_a_latency_backend() -> None:
    def wide(threads, device):  # type: ignore[no-untyped-def]
        return lambda gm, inputs: 1.0 + sum(p.numel() for p in gm.parameters()) / 1000

    fxprune.register_backend("simulator", wide)
    settings = {"backend": "simulator", "limits": {"networks": 12}}
    result = netadapt(
        make(),
        Budget("latency", ratio=0.8),
        example_inputs=EXAMPLE,
        config=FAST.replace(latency=settings),
        progress=False,
    )
    assert result.met and "simulator" in fxprune.list_backends()


def test_an_exporter(tmp_path: Path) -> None:
    def npz(job):  # type: ignore[no-untyped-def]
        np.savez(job.path, **{name: tensor.numpy() for name, tensor in job.network.state_dict().items()})

    fxprune.register_exporter(".npz", npz)
    report = export(make(), EXAMPLE, tmp_path / "net.npz")
    assert report.files == (tmp_path / "net.npz",) and "tail.weight" in np.load(report.path)
    with pytest.raises(fxprune.ExportError, match="nothing was written"):
        export(make(), EXAMPLE, tmp_path / "net.npz")
    fxprune.register_exporter(".none", lambda job: None)
    with pytest.raises(fxprune.ExportError, match="wrote nothing, not net.none"):
        export(make(), EXAMPLE, tmp_path / "net.none")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.npz"]


class Threads:
    def __init__(self, job) -> None:  # type: ignore[no-untyped-def]
        self.job, self.pool = job, ThreadPoolExecutor(1)

    def start(self) -> None:
        pass

    def run(self, network, coupling, tasks):  # type: ignore[no-untyped-def]
        yield from self.pool.map(lambda task: self.job.do(network, task), tasks)

    def close(self) -> None:
        self.pool.shutdown()


def test_workers() -> None:
    fxprune.register_workers("threads", Threads)
    train = FineTune(batches(), lr=0.05)
    plans = [
        netadapt(
            make(), 0.7, example_inputs=EXAMPLE, train=train, evaluate=negative_loss, progress=False,
            config=FAST.replace(workers=workers, candidate_time_limit=None),
        ).plan
        for workers in ("threads", Threads, 1)
    ]  # fmt: skip
    assert plans[0] == plans[1] == plans[2] and "threads" in fxprune.list_workers()


class Lossy(Threads):
    """Workers whose `run` gives `results(job, network, tasks)`."""

    results = staticmethod(lambda job, network, tasks: [job.do(network, tasks[0])])

    def run(self, network, coupling, tasks):  # type: ignore[no-untyped-def]
        return self.results(self.job, network, tasks)


def lossy(results):  # type: ignore[no-untyped-def]
    return type("Mine", (Lossy,), {"results": staticmethod(results)})


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (Lossy, "'Lossy': run: it ended without an outcome of candidate 1 .*; expected an Outcome"),
        (lossy(lambda job, network, tasks: []), "'Mine': run: it ended without an outcome of candidate 0"),
        (
            lossy(lambda job, network, tasks: [job.do(network, tasks[0]) for _ in tasks]),
            "'Mine': run: got an outcome of candidate 0, which came before",
        ),
        (lossy(lambda job, network, tasks: None), "'Mine': run: got None; expected an Outcome"),
        (lossy(lambda job, network, tasks: [5]), "'Mine': run: got 5; expected an Outcome"),
        (
            lossy(lambda job, network, tasks: [Outcome(task.index, Trained(), None) for task in tasks]),
            "'Mine': run: candidate 0: got neither a score nor an error",
        ),
        (type("Bare", (), {"__init__": lambda self, job: None}), "'Bare': got a Bare, which has no start"),
        (type("Alone", (), {}), "'Alone' does not take what it is called with .*; expected a function"),
    ],
)
def test_workers_that_lose_repeat_or_make_up_candidates_are_refused(workers: type, words: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=f"kind of workers {words}"):
        netadapt(
            make(), 0.7, example_inputs=EXAMPLE, train=lambda model, steps: None, evaluate=negative_loss,
            progress=False, config=FAST.replace(workers=workers, candidate_time_limit=None),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (lambda now: None, "got None; expected a list of proposals"),
        (lambda now: {"tail": 4}, "got a dict; expected a list of proposals"),
        (lambda now: ["tail"], "a proposal: got the text 'tail'; expected a list"),
        (lambda now: [{}], "a strategy proposes no width at all"),
        (lambda now: [{"tail": np.arange(2)}], "for group 'tail'; allowed are"),
        (lambda: [], "does not take what it is called with"),
    ],
)
def test_a_strategy_that_proposes_nothing_of_the_kind_is_refused(strategy: object, words: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=f"strategy '<lambda>':? ?.*{words}"):
        run(config=FAST.replace(strategy=strategy))


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (lambda network, group, statistics=None: ["a"] * group.size, r"got a list of \d+ \(str\); expected"),
        (lambda network, group, statistics=None: np.ones(group.size) * 1j, "got a ndarray; expected"),
        (lambda network, group, statistics=None: None, "got None; expected"),
        (lambda network, group, statistics=None: Ranking(np.ones(2), np.ones(3)), r"with shape \(2,\); expected"),
        (
            lambda network, group, statistics=None: Ranking(np.ones(group.size), np.ones(3)),
            "as the errors of a Ranking; expected",
        ),
        (lambda network, group: np.ones(group.size), "does not take what it is called with .*'statistics'"),
    ],
)
def test_a_criterion_that_gives_no_numbers_is_refused(criterion: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"criterion '<lambda>'.*{words}"):
        run(config=FAST.replace(metrics=criterion))


def test_a_criterion_may_give_a_tensor_of_any_type() -> None:
    run(config=FAST.replace(metrics=lambda network, group, statistics=None: torch.ones(group.size).bfloat16()))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (lambda widths=None: "a", ConfigError, r"value\(widths\) gave the text 'a'; expected a number"),
        (lambda widths=None: None, ConfigError, r"value\(widths\) gave None; expected a number"),
        (lambda widths=None: 1j, ConfigError, r"value\(widths\) gave .*; expected a number"),
        (lambda widths=None: np.ones(3), ConfigError, r"value\(widths\) gave an array of shape \(3,\)"),
        (lambda widths=None: float("inf"), BudgetError, "its value at the widths .* is inf; expected a finite number"),
        (
            lambda widths=None: sum(math.ceil(width / 4) for width in (widths or {"tail": 8}).values()),
            ConfigError,
            r"value\(widths\) failed: TypeError: .*np.ceil, not math.ceil",
        ),
    ],
)
def test_a_resource_that_is_no_number_is_refused(value: object, error: type[Exception], words: str) -> None:
    fxprune.register_resource("mine", lambda subject: value, unit="u", monotone=True)
    with pytest.raises(error, match=f"resource 'mine': {words}"):
        netadapt(make(), Budget("mine", ratio=0.5), example_inputs=EXAMPLE, config=FAST, progress=False)


def test_names_are_taken_once_and_wrong_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="a criterion 'obs' already; pass override=True"):
        fxprune.register_criterion("obs", last_units)
    fxprune.register_criterion("obs", last_units, override=True)
    with pytest.raises(ConfigError, match="got a int; expected a function"):
        fxprune.register_criterion("number", 3)
    with pytest.raises(ConfigError, match="no strategy is called 'nettadapt'.*Did you mean 'netadapt'"):
        NetAdaptConfig(strategy="nettadapt")
    assert fxprune.list_strategies() == ["allocate", "knapsack", "netadapt", "uniform"]
    assert fxprune.list_exporters() == [".onnx", ".pt2", ".py", ".safetensors"]


def test_an_object_in_a_stored_configuration_is_named_and_must_be_handed_in_again(tmp_path: Path) -> None:
    NetAdaptConfig(metrics=last_units).to_yaml(tmp_path / "config.yml")
    stored = NetAdaptConfig.from_yaml(tmp_path / "config.yml")
    assert stored.to_dict()["metrics"] == {"object": f"{__name__}.last_units"}
    with pytest.raises(ConfigError, match=f"the object {__name__}.last_units, which a file names; pass the object"):
        netadapt(make(), 0.5, example_inputs=EXAMPLE, config=stored.replace(netadapt_min_feature_size=2))


def test_a_search_with_an_object_goes_on(tmp_path: Path) -> None:
    first, again = (run(config=FAST.replace(metrics=last_units), workdir=tmp_path) for _ in range(2))
    assert first.plan == again.plan
    assert "l2_norm" not in (tmp_path / "run.json").read_text()


def test_plugins_register_when_a_name_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("a_plugin")
    module.setup = lambda: fxprune.register_criterion("of a plugin", last_units)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_plugin", module)
    entries = [
        EntryPoint("good", "a_plugin:setup", registries.PLUGINS),
        EntryPoint("bad", "no_such", registries.PLUGINS),
    ]
    monkeypatch.setattr(registries, "entry_points", lambda group: entries)
    monkeypatch.setattr(registries, "_plugins_loaded", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NetAdaptConfig(metrics="l1_norm").metrics == "l1_norm"  # nothing is loaded for a built-in
    with pytest.warns(PluginWarning, match=r"plugin bad \(no_such\) cannot be used: ModuleNotFoundError"):
        assert NetAdaptConfig(metrics="of a plugin").metrics == "of a plugin"
