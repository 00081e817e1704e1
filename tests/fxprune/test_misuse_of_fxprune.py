"""Misuse of every public function of `fxprune`: each ends in an error of the package that says what was got."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from misuse import (
    NO_INPUTS,
    NO_MODULES,
    NO_PLANS,
    ODD,
    ODD_BATCHES,
    ODD_FILES,
    Net,
    Table,
    everything,
    fault,
)

from fxprune import (
    Accuracy,
    Budget,
    DLContext,
    FineTune,
    NetAdaptConfig,
    NetAdaptPruner,
    PrunePass,
    check_files,
    export,
    finetune,
    load,
    netadapt,
    prune_checkpoint,
    register_criterion,
    register_exporter,
    train,
)  # fmt: skip
from fxprune.latency import LatencyTable, latency_model, measure_latency_ms
from fxprune.report import write_report

MISUSES = Table()

MISUSES.each("export", NO_MODULES, lambda e, v: export(v, e.x, e.folder / "x.pt2"))
MISUSES.each(
    "export inputs",
    {k: v for k, v in NO_INPUTS.items() if k not in ("half", "no rows")},
    lambda e, v: export(e.pruned, v, e.folder / "x.pt2"),
)
MISUSES.each(
    "export path",
    {
        "None": None,
        "number": 3,
        "folder": ".",
        "no suffix": "net",
        "missing": "nowhere/net.pt2",
        "empty": "",
        "suffix": "net.pth",
        "list": ["net.pt2"],
    },
    lambda e, v: export(e.pruned, e.x, v),
)
MISUSES.each(
    "export plan",
    {k: v for k, v in NO_PLANS.items() if k != "None"},
    lambda e, v: export(e.pruned, e.x, e.folder / "x.safetensors", plan=e.coupling if v is ... else v),
)
MISUSES.each(
    "export batch dim",
    {"None": None, "text": "0", "fraction": 0.5, "list": [0]},
    lambda e, v: export(e.pruned, e.x, e.folder / "x.pt2", batch_dim=v),
)
MISUSES.each(
    "export tolerance",
    {"text": "1", "negative": -1.0, "nan": float("nan"), "list": [1]},
    lambda e, v: export(e.pruned, e.x, e.folder / "x.pt2", tolerance=v),
)
MISUSES.one(
    "export",
    other_plan=lambda e: export(e.pruned, e.x, e.folder / "x.safetensors", plan=e.other.plan({})),
    dense_plan=lambda e: export(e.gm, e.x, e.folder / "x.safetensors", plan=e.plan),
)
MISUSES.each("load", NO_MODULES, lambda e, v: load(v, e.file))
MISUSES.each(
    "load path",
    {
        "None": None,
        "number": 3,
        "missing": "nowhere.safetensors",
        "folder": ".",
        "suffix": "net.pth",
        "list": ["x"],
        "empty": "",
    },
    lambda e, v: load(Net(), v),
)
MISUSES.one("load", other=lambda e: load(Net(7), e.file), pruned=lambda e: load(e.pruned, e.file))
MISUSES.each(
    "load inputs",
    {k: v for k, v in NO_INPUTS.items() if k in ("too many", "name", "empty")},
    lambda e, v: load(Net(), e.file, v),
)
MISUSES.each(
    "check files",
    {"None": None, "number": 3, "missing": "nowhere.pt2", "folder": ".", "list": ["x"], "empty": ""},
    lambda e, v: check_files(v),
)

MISUSES.each("netadapt", NO_MODULES, lambda e, v: netadapt(v, 0.5, example_inputs=e.x, progress=False))
MISUSES.each("netadapt inputs", NO_INPUTS, lambda e, v: netadapt(Net(), 0.5, example_inputs=v, progress=False))
MISUSES.each(
    "netadapt budget",
    {
        "text": "half",
        "zero": 0,
        "negative": -0.5,
        "large": 1.5,
        "nan": float("nan"),
        "empty": [],
        "none": [None],
        "dict": {},
        "huge": 10**5000,
        "object": object(),
    },
    lambda e, v: netadapt(Net(), v, example_inputs=e.x, progress=False),
)
MISUSES.each(
    "netadapt config",
    {"number": 3, "missing": "nowhere.yml", "list": ["x"], "key": {"what": 1}, "names": {1: 2}},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, config=v, progress=False),
)
MISUSES.each(
    "netadapt scope",
    {"unknown": "nothing", "number": 3, "empty": "", "list": [3], "none": []},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, scope=v, progress=False),
)
MISUSES.each(
    "netadapt seed",
    {"None": None, "text": "1", "fraction": 1.5, "negative": -1, "huge": 2**70},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, seed=v, progress=False),
)
MISUSES.each(
    "netadapt resources",
    {"number": 3, "text": "macs", "list": ["macs"], "object": [object()]},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, resources=v, progress=False),
)
MISUSES.each(
    "netadapt workdir",
    {"number": 3, "list": ["x"], "file": "text.yml"},
    lambda e, v: netadapt(
        Net(), 0.5, example_inputs=e.x, workdir=e.folder / v if v == "text.yml" else v, progress=False
    ),
)
MISUSES.each(
    "netadapt evaluate",
    {"number": 3, "text": "f"},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, evaluate=v, progress=False),
)
MISUSES.each(
    "netadapt train",
    {"number": 3, "text": "f", "alone": print},
    lambda e, v: netadapt(Net(), 0.5, example_inputs=e.x, train=v, progress=False),
)

MISUSES.each(
    "budget", {"None": None, "unknown": "time", "number": 3, "list": ["macs"]}, lambda e, v: Budget(v, ratio=0.5)
)
MISUSES.each(
    "budget ratio",
    {"text": "half", "zero": 0, "large": 2, "nan": float("nan"), "negative": -1, "bool": True, "list": [0.5]},
    lambda e, v: Budget("macs", ratio=v),
)
MISUSES.each(
    "budget value",
    {
        "text": "many",
        "zero": 0,
        "nan": float("nan"),
        "infinity": float("inf"),
        "negative": -1,
        "bool": True,
        "huge": -(10**5000),
    },
    lambda e, v: Budget("macs", value=v),
)
MISUSES.one(
    "budget",
    both=lambda e: Budget("macs", 0.5, 3),
    neither=lambda e: Budget("macs"),
    limit=lambda e: Budget("macs", 0.5).limit("x"),
    limit_none=lambda e: Budget("macs", 0.5).limit(None),
)
MISUSES.each(
    "config from dict", {"None": None, "text": "x", "list": [1], "number": 3}, lambda e, v: NetAdaptConfig.from_dict(v)
)
MISUSES.each(
    "config from yaml",
    {"None": None, "number": 3, "missing": "nowhere.yml", "folder": ".", "list": ["x"]},
    lambda e, v: NetAdaptConfig.from_yaml(v),
)
MISUSES.each(
    "config to yaml", {"missing": "nowhere/x.yml", "folder": ".", "number": 3}, lambda e, v: NetAdaptConfig().to_yaml(v)
)
MISUSES.one(
    "config",
    replace=lambda e: NetAdaptConfig().replace(what=3),
    replace_value=lambda e: NetAdaptConfig().replace(seed="x"),
)

MISUSES.each(
    "finetune",
    {k: v for k, v in NO_MODULES.items() if k != "text"},
    lambda e, v: finetune(v, e.batches, epochs=1, progress=False),
)
MISUSES.each(
    "finetune batches",
    {
        "None": None,
        "number": 3,
        "empty": [],
        "tensor inside": [torch.zeros(2)],
        "text": "x",
        "none": [None],
        "shape": [(torch.zeros(2, 9, 8, 8), torch.zeros(2).long())],
    },
    lambda e, v: finetune(Net(), v, epochs=1, progress=False),
)
MISUSES.each(
    "finetune epochs",
    {"None": None, "text": "3", "negative": -1, "fraction": 1.5},
    lambda e, v: finetune(Net(), e.batches, epochs=v, progress=False),
)
MISUSES.each(
    "finetune lr",
    {"None": None, "text": "x", "negative": -1.0, "nan": float("nan")},
    lambda e, v: finetune(Net(), e.batches, epochs=1, lr=v, progress=False),
)
MISUSES.each(
    "finetune momentum",
    {"None": None, "text": "x", "negative": -1.0, "large": 2.0},
    lambda e, v: finetune(Net(), e.batches, epochs=1, momentum=v, progress=False),
)
MISUSES.each(
    "finetune distill",
    {"None": None, "text": "x", "negative": -1.0, "large": 2.0, "no teacher": 0.5},
    lambda e, v: finetune(Net(), e.batches, epochs=1, distill=v, progress=False),
)
MISUSES.each(
    "finetune device",
    {"text": "nothing", "number": 3.5, "missing": "cuda:99"},
    lambda e, v: finetune(Net(), e.batches, epochs=1, device=v, progress=False),
)
MISUSES.each(
    "finetune others",
    {
        "loss": {"loss": 3},
        "optimizer": {"optimizer": 3},
        "evaluate": {"evaluate": 3},
        "teacher": {"teacher": 3, "distill": 0.5},
        "amp": {"amp": "x"},
        "warmup": {"warmup": "x"},
        "temperature": {"temperature": 0, "distill": 0.5, "teacher": Net()},
        "decay": {"weight_decay": "x"},
        "seed": {"seed": "x"},
    },
    lambda e, v: finetune(Net(), e.batches, epochs=1, progress=False, **v),
)
MISUSES.one(
    "finetune",
    missing=lambda e: finetune("nowhere", e.batches, model=Net()),
    folder_without_model=lambda e: finetune(e.folder, e.batches),
    round=lambda e: finetune(Net(), e.batches, round=3),
)
MISUSES.each("train", NO_MODULES, lambda e, v: train(v, DLContext(train_loader=e.batches, max_epoch=1, progress=False)))
MISUSES.each("train context", {"None": None, "dict": {}, "text": "x", "class": DLContext}, lambda e, v: train(Net(), v))
MISUSES.each("fine tune", {"None": None, "number": 3, "empty": [], "odd": [3]}, lambda e, v: FineTune(v)(Net(), 1))
MISUSES.each(
    "fine tune steps",
    {"None": None, "text": "x", "negative": -1, "fraction": 1.5},
    lambda e, v: FineTune(e.batches)(Net(), v),
)
MISUSES.each(
    "fine tune lr", {"None": None, "text": "x", "negative": -1}, lambda e, v: FineTune(e.batches, lr=v)(Net(), 1)
)
MISUSES.each("fine tune model", NO_MODULES, lambda e, v: FineTune(e.batches)(v, 1))
MISUSES.each("accuracy", {"None": None, "number": 3, "empty": [], "odd": [3]}, lambda e, v: Accuracy(v)(Net()))
MISUSES.each("accuracy model", NO_MODULES, lambda e, v: Accuracy(e.batches)(v))
MISUSES.each("pruner", NO_MODULES, lambda e, v: NetAdaptPruner(v, e.x, {"budget_ratio": 0.5}, e.context))
MISUSES.each(
    "pruner config",
    {"None": None, "number": 3, "missing": "nowhere.yml", "key": {"what": 3}, "empty": {}},
    lambda e, v: NetAdaptPruner(Net(), e.x, v, e.context).prune(),
)
MISUSES.each(
    "pruner context",
    {"None": None, "dict": {}, "text": "x"},
    lambda e, v: NetAdaptPruner(Net(), e.x, {"budget_ratio": 0.5}, v).prune(),
)
MISUSES.each(
    "pruner inputs",
    {k: NO_INPUTS[k] for k in ("text", "number", "empty", "channels", "name", "set")},
    lambda e, v: NetAdaptPruner(Net(), v, {"budget_ratio": 0.5}, e.context).prune(),
)
MISUSES.each(
    "pruner restore",
    {"None": None, "text": "x", "number": 3, "negative": -1},
    lambda e, v: NetAdaptPruner(Net(), e.x, {"budget_ratio": 0.5}, e.context).restore(v),
)
MISUSES.each(
    "prune pass", {"text": "half", "zero": 0, "large": 1.5, "None": None}, lambda e, v: PrunePass(v, e.x)(e.gm)
)
MISUSES.each("prune pass graph", NO_MODULES, lambda e, v: PrunePass(0.5, e.x)(v))
MISUSES.each("prune pass before", {"None": None, "number": 3}, lambda e, v: PrunePass(0.5, e.x).before(v))

NAMES = {**ODD, "long": "n" * 5000}


def search(e: SimpleNamespace, **given: object) -> object:
    plain = {"model": Net(), "budget": 0.7, "example_inputs": e.x, "progress": False, "config": {"sweeps": 0}}
    return netadapt(**{**plain, **given})


MISUSES.each("odd form", {**NAMES, "list": ["graph"], "None": None}, lambda e, v: search(e, form=v))
MISUSES.each("odd scope", NAMES, lambda e, v: search(e, scope=v))
MISUSES.each("odd seed", NAMES, lambda e, v: search(e, seed=v))
MISUSES.each("odd resume", {**NAMES, "number": 1, "text": "yes"}, lambda e, v: search(e, resume=v))
MISUSES.each("odd calibration", ODD_BATCHES, lambda e, v: search(e, calibration=v))
MISUSES.each("odd workdir", ODD_FILES, lambda e, v: search(e, workdir=v))
MISUSES.each("odd checkpoint", ODD_FILES, lambda e, v: search(e, checkpoint=v))
MISUSES.each("odd configuration", ODD_FILES, lambda e, v: search(e, config=v))
MISUSES.each("odd key", NAMES, lambda e, v: search(e, config={v: 1} if getattr(type(v), "__hash__", None) else v))
CALLABLE = ("criterion", "workers", "strategy")  # may be a function of the user's, as which a module passes
for key in ("budget_ratio", "exclude", "depth", "latency", "step", *CALLABLE):
    WRONG = {name: value for name, value in ODD.items() if name != "module" or key not in CALLABLE}
    MISUSES.each(f"odd {key}", WRONG, lambda e, v, key=key: NetAdaptConfig.from_dict({key: v}))
MISUSES.each("odd budget", NAMES, lambda e, v: Budget(v, ratio=0.5))
MISUSES.each("odd ratio", ODD, lambda e, v: Budget("macs", ratio=v))
MISUSES.each("odd batches", ODD_BATCHES, lambda e, v: finetune(Net(), v, epochs=1, progress=False))
MISUSES.each("odd accuracy", ODD_BATCHES, lambda e, v: Accuracy(v)(Net()))
MISUSES.each("odd fine tune", ODD_BATCHES, lambda e, v: FineTune(v)(Net(), 3))
FAILING = {"fails": lambda model: 1 / 0, "class": Net, "module": Net(), "text": lambda model: "x"}
MISUSES.each("odd evaluate", FAILING, lambda e, v: finetune(Net(), e.pairs, epochs=1, evaluate=v, progress=False))
MISUSES.each("odd evaluate of a search", FAILING, lambda e, v: search(e, evaluate=v))
MISUSES.each("odd export", ODD_FILES, lambda e, v: export(e.pruned, e.x, v))
MISUSES.each("odd overwrite", ODD, lambda e, v: export(e.pruned, e.x, e.folder / "odd.pt2", overwrite=v))
MISUSES.each("odd dynamic batch", ODD, lambda e, v: export(e.pruned, e.x, e.folder / "odd.pt2", dynamic_batch=v))
MISUSES.each("odd load", ODD_FILES, lambda e, v: load(Net(), v))
MISUSES.each("odd check files", ODD_FILES, lambda e, v: check_files(v))
MISUSES.each("odd checkpoint folder", ODD_FILES, lambda e, v: prune_checkpoint(Net(), e.plan, v, e.folder / "out"))
MISUSES.each("odd report", ODD_FILES, lambda e, v: e.result.report(v))
MISUSES.each("odd report of a folder", ODD_FILES, lambda e, v: write_report(v))
MISUSES.each("odd plot", NAMES, lambda e, v: e.result.plot(v))
MISUSES.each("odd round", NAMES, lambda e, v: e.result.restore(v))
MISUSES.each("odd criterion name", NAMES, lambda e, v: register_criterion(v, "not a function"))
MISUSES.each("odd exporter", NAMES, lambda e, v: register_exporter(v, print))
MISUSES.each("odd registered", ODD, lambda e, v: register_criterion("mine", print, override=v))
for key in ("threads", "step", "least", "limits", "foreign", "progress", "table", "measure"):
    WRONG = {name: value for name, value in ODD.items() if (name, key) != ("module", "measure")}
    MISUSES.each(
        f"odd latency {key}", WRONG, lambda e, v, key=key: latency_model(e.gm, e.x, backend="eager", **{key: v})
    )
MISUSES.each("odd table", ODD_FILES, lambda e, v: LatencyTable.load(v))
MISUSES.each("odd measured", NO_INPUTS, lambda e, v: measure_latency_ms(e.gm, v, backend="eager", repeats=1))
MISUSES.each("odd repeats", ODD, lambda e, v: measure_latency_ms(e.gm, e.x, backend="eager", repeats=v))


@pytest.fixture(scope="module")
def e(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    found = everything(tmp_path_factory.mktemp("misuse"))
    found.result = netadapt(Net(), 0.7, example_inputs=found.x, progress=False)
    found.pairs = [(found.x, torch.randint(5, (2, 4, 4)))]
    return found


@pytest.mark.parametrize("name", MISUSES.calls)
def test_misuse_is_an_error_in_words(
    e: SimpleNamespace, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault(MISUSES.calls[name], e) is None
