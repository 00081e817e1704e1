"""Misuse of every public function of `passes`: each ends in an error of the package that says what was got."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from misuse import (
    NO_INPUTS,
    NO_MODULES,
    NO_PLANS,
    ODD,
    ODD_BATCHES,
    ODD_FILES,
    FailsLater,
    Net,
    Table,
    everything,
    fault,
)
from torch import nn

from passes import (
    Compensate,
    Plan,
    PruneChannels,
    Statistics,
    apply_plan,
    capture,
    compensate,
    cost,
    couple,
    equation_rule,
    observe,
    plan_of,
    refine,
    repairs_of,
    rule,
    verify,
)

MISUSES = Table()


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("something of the user's own")


MISUSES.each("capture", NO_MODULES, lambda e, v: capture(v, e.x))
MISUSES.each(
    "capture inputs",
    {k: NO_INPUTS[k] for k in ("text", "number", "too many", "name", "set")},
    lambda e, v: capture(e.net, v, "export"),
)
MISUSES.each(
    "frontend",
    {"text": "nothing", "None": None, "number": 3, "list": ["fx"], "array": np.zeros(2), "object": object()},
    lambda e, v: capture(e.net, e.x, v),
)
MISUSES.each("couple", NO_MODULES, lambda e, v: couple(v, e.x))
MISUSES.each("couple inputs", NO_INPUTS, lambda e, v: couple(e.gm, v))
MISUSES.each("couple inputs of a module", NO_INPUTS, lambda e, v: couple(Net(), v))
MISUSES.one("couple", own_error=lambda e: couple(Wrong(), e.x), None_inputs=lambda e: couple(e.gm, None))

NO_COUPLINGS = {"None": None, "text": "coupling", "module": Net(), "plan": ..., "dict": {}}
MISUSES.each("cost", NO_COUPLINGS, lambda e, v: cost(e.plan if v is ... else v))
NO_WIDTHS = {
    "unknown": {"conv9": 3}, "negative": {"conv1": -1}, "too wide": {"conv1": 9}, "fraction": {"conv1": 2.5},
    "text": {"conv1": "three"}, "None inside": {"conv1": None}, "list": [1, 2], "number": 3, "string": "conv1",
    "nan": {"conv1": float("nan")}, "shape": {"conv1": np.zeros((2, 2))},
    "lengths": {"conv1": np.array([1, 2]), "conv2": np.array([1, 2, 3])},
    "plan": ...,
}  # fmt: skip
for resource in ("macs", "params", "flops", "memory"):
    MISUSES.each(resource, NO_WIDTHS, lambda e, v, r=resource: getattr(e.costs, r)(e.plan if v is ... else v))
MISUSES.each(
    "resource",
    {"unknown": "time", "None": None, "number": 3, "latency": "latency", "list": ["macs"]},
    lambda e, v: e.costs.resource(v),
)
MISUSES.one(
    "along",
    name=lambda e: e.costs.along("time"),
    widths=lambda e: e.costs.along("macs", {"conv9": 1}),
    none=lambda e: e.costs.along(None),
)

NO_GROUPS: dict[str, Any] = {
    "unknown": "conv9",
    "None": None,
    "number": 0,
    "list": ["conv1"],
    "empty": "",
    "group": ...,
}
MISUSES.each("group", NO_GROUPS, lambda e, v: e.coupling.group(e.coupling.groups[0] if v is ... else v))
MISUSES.each("explain", NO_GROUPS, lambda e, v: e.coupling.explain("conv1", e.coupling.groups[0] if v is ... else v))
MISUSES.each(
    "explain first",
    {"unknown": "conv9.weight", "None": None, "tuple": ("conv1.weight", 0)},
    lambda e, v: e.coupling.explain(v, "conv1"),
)
NO_KEEPS = {
    "None": None, "text": "conv1", "list": [0, 1], "number": 3, "plan": ..., "unknown": {"conv9": [0]},
    "no name": {None: [0]}, "number as name": {0: [0]}, "units None": {"conv1": None}, "units text": {"conv1": "all"},
    "units number": {"conv1": 4}, "fractions": {"conv1": [0.5]}, "empty": {"conv1": []}, "twice": {"conv1": [1, 1]},
    "order": {"conv1": [2, 1]}, "range": {"conv1": [8]}, "mask": {"conv1": torch.ones(8, dtype=torch.bool)},
    "nested": {"conv1": [[0], [1]]}, "matrix": {"conv1": np.zeros((2, 2), int)},
    "meta": {"conv1": torch.zeros(2, device="meta")},
    "unit None": {"conv1": [None]}, "generator": {"conv1": iter(["x"])}, "scalar": {"conv1": torch.tensor(3)},
    "slice": {"conv1": slice(0, 2)},
}  # fmt: skip
MISUSES.each("plan", NO_KEEPS, lambda e, v: e.coupling.plan(e.plan if v is ... else v))
MISUSES.each(
    "after",
    {**NO_PLANS, "other": "other"},
    lambda e, v: e.coupling.after(e.coupling if v is ... else e.other.plan({}) if v == "other" else v),
)
MISUSES.each("masks", NO_PLANS, lambda e, v: e.coupling.masks(e.coupling if v is ... else v))
MISUSES.each(
    "check", {"None": None, "text": "coupling", "graph": ...}, lambda e, v: e.plan.check(e.gm if v is ... else v)
)
MISUSES.each("then", NO_PLANS, lambda e, v: e.plan.then(e.coupling if v is ... else v))
MISUSES.one(
    "kept in block", unknown=lambda e: e.plan.kept_in_block("conv9", 0), none=lambda e: e.plan.kept_in_block(None, 0)
)
MISUSES.each(
    "from json",
    {
        "None": None,
        "bytes": b"{}",
        "path": Path("plan.json"),
        "dict": {},
        "empty": "",
        "list": "[]",
        "file name": "plan.json",
    },
    lambda e, v: Plan.from_json(v),
)
MISUSES.one(
    "to json",
    keep=lambda e: Plan({"a": "all"}, "f", {"a": 3}).to_json(), sizes=lambda e: Plan({"a": (0,)}, "f", {}).to_json(),
    inputs=lambda e: Plan({"a": (0,)}, "f", {"a": 3}, [object()]).to_json(),
)  # fmt: skip
MISUSES.each("prune plan", NO_PLANS, lambda e, v: PruneChannels(e.coupling if v is ... else v)(e.gm))
MISUSES.each("prune", NO_MODULES, lambda e, v: PruneChannels(e.plan)(v))
MISUSES.one(
    "prune",
    module=lambda e: PruneChannels(e.plan)(e.net),
    other=lambda e: PruneChannels(e.plan)(capture(Net(7), e.x)),
    twice=lambda e: PruneChannels(e.plan)(e.pruned),
)
MISUSES.each("apply plan", NO_MODULES, lambda e, v: apply_plan(v, e.plan))
MISUSES.each("apply plan of", NO_PLANS, lambda e, v: apply_plan(e.net, e.coupling if v is ... else v))
MISUSES.one(
    "apply plan",
    other=lambda e: apply_plan(Net(7), e.plan),
    twice=lambda e: apply_plan(
        apply_plan(Net(), couple(Net(), e.x).plan({"conv1": range(4)})), couple(Net(), e.x).plan({"conv1": range(4)})
    ),
)
MISUSES.each("plan of", NO_MODULES, lambda e, v: plan_of(v))

MISUSES.each("verify dense", NO_MODULES, lambda e, v: verify(v, e.pruned, e.plan, e.x))
MISUSES.each("verify pruned", NO_MODULES, lambda e, v: verify(e.gm, v, e.plan, e.x))
MISUSES.each("verify plan", NO_PLANS, lambda e, v: verify(e.gm, e.pruned, e.coupling if v is ... else v, e.x))
MISUSES.each("verify inputs", NO_INPUTS, lambda e, v: verify(e.gm, e.pruned, e.plan, v))
MISUSES.each(
    "verify tol",
    {"None": None, "text": "1e-9", "negative": -1.0, "nan": float("nan"), "infinity": float("inf"), "list": [1e-9]},
    lambda e, v: verify(e.gm, e.pruned, e.plan, e.x, v),
)
MISUSES.each(
    "verify runs",
    {"None": None, "text": "2", "negative": -1, "zero": 0, "fraction": 1.5, "list": [1]},
    lambda e, v: verify(e.gm, e.pruned, e.plan, e.x, runs=v),
)
MISUSES.each(
    "verify seed",
    {"None": None, "text": "2", "negative": -1, "fraction": 1.5, "huge": 2**70},
    lambda e, v: verify(e.gm, e.pruned, e.plan, e.x, seed=v),
)
MISUSES.each(
    "verify trained",
    {"None": None, "text": "no", "number": 1, "tensor": torch.zeros(2)},
    lambda e, v: verify(e.gm, e.pruned, e.plan, e.x, trained=v),
)
MISUSES.one(
    "verify", swapped=lambda e: verify(e.pruned, e.gm, e.plan, e.x), same=lambda e: verify(e.gm, e.gm, e.plan, e.x),
    other_plan=lambda e: verify(e.gm, e.pruned, e.other.plan({}), e.x),
)  # fmt: skip

MISUSES.each(
    "rule",
    {"None": None, "text": "aten.relu", "module": nn.ReLU(), "number": 3},
    lambda e, v: rule(v)(lambda call: None),
)
MISUSES.each(
    "rule of", {"None": None, "text": "f", "number": 3}, lambda e, v: rule(torch.ops.aten.special_i1.default)(v)
)
MISUSES.one("rule", nothing=lambda e: rule()(lambda call: None))
MISUSES.one(
    "equation rule",
    operators=lambda e: equation_rule(None, "n i -> n i", ["self"]),
    operator=lambda e: equation_rule(["relu"], "n i -> n i", ["self"]),
    text=lambda e: equation_rule([torch.ops.aten.special_i1.default], None, ["self"]),
    arrow=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i", ["self"]),
    empty=lambda e: equation_rule([torch.ops.aten.special_i1.default], "", ["self"]),
    count=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i, i -> n", ["self"]),
    operand=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", ["nothing"]),
    operands=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", None),
    operand_number=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", [3]),
    macs=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", ["self"], macs="q"),
    macs_number=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", ["self"], macs=3),
    brackets=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n (i -> n i", ["self"]),
    sizes=lambda e: equation_rule([torch.ops.aten.special_i1.default], "n i -> n i", ["self"], sizes=3),
)  # fmt: skip

NO_BATCHES = {
    "None": None, "number": 3, "text": "x", "empty": [], "numbers": [3], "channels": [torch.zeros(2, 4, 8, 8)],
    "meta": [torch.zeros(2, 3, 8, 8, device="meta")], "module": Net(), "name": [{"y": torch.zeros(2, 3, 8, 8)}],
    "nothing": [()], "nan": [torch.full((2, 3, 8, 8), torch.nan)],
}  # fmt: skip
NO_COUNTS = {"None": None, "text": "2", "negative": -1, "fraction": 1.5, "list": [1], "nan": float("nan")}
NO_FUNCTIONS = {"number": 3, "text": "f", "list": []}
NO_STATISTICS = {"None": None, "text": "s", "dict": {}, "coupling": ...}
MISUSES.each("observe", NO_MODULES, lambda e, v: observe(v, e.coupling, [e.x]))
MISUSES.each("observe coupling", NO_COUPLINGS, lambda e, v: observe(e.gm, e.plan if v is ... else v, [e.x]))
MISUSES.each("observe batches", NO_BATCHES, lambda e, v: observe(e.gm, e.coupling, v))
MISUSES.each("observe rows", NO_COUNTS, lambda e, v: observe(e.gm, e.coupling, [e.x], rows=v))
MISUSES.each("observe seed", NO_COUNTS, lambda e, v: observe(e.gm, e.coupling, [e.x], seed=v))
MISUSES.each("observe progress", NO_FUNCTIONS, lambda e, v: observe(e.gm, e.coupling, [e.x], progress=v))
MISUSES.each(
    "observe gradients",
    {**NO_FUNCTIONS, "array": np.zeros(3), "nothing": print, "fails": lambda output, labels: labels.shape},
    lambda e, v: observe(e.gm, e.coupling, [e.x], gradients=v),
)
MISUSES.one("observe", other=lambda e: observe(capture(Net(7), e.x), e.coupling, [e.x]))
MISUSES.each("compensate", NO_MODULES, lambda e, v: compensate(v, e.statistics, e.plan))
MISUSES.each(
    "compensate statistics",
    NO_STATISTICS,
    lambda e, v: compensate(e.pruned, e.coupling if v is ... else v, e.plan, e.gm),
)
MISUSES.each(
    "compensate plan", NO_PLANS, lambda e, v: compensate(e.pruned, e.statistics, e.coupling if v is ... else v)
)
MISUSES.each(
    "compensate ridges",
    {"None": None, "text": "x", "empty": (), "negative": (-1.0,), "nan": (float("nan"),), "number": 0.1},
    lambda e, v: compensate(e.pruned, e.statistics, e.plan, ridges=v),
)
MISUSES.one(
    "compensate",
    other_plan=lambda e: compensate(e.pruned, e.statistics, e.other.plan({})),
    dense=lambda e: compensate(e.gm, e.statistics, e.plan),
    other_dense=lambda e: compensate(e.pruned, e.statistics, e.plan, Net(7)),
    called=lambda e: Compensate(e.statistics, e.plan)(None),
)
MISUSES.each("repairs of", NO_MODULES, lambda e, v: repairs_of(v))
MISUSES.each("refine", NO_MODULES, lambda e, v: refine(v, e.plan, e.gm, [e.x]))
MISUSES.each("refine dense", NO_MODULES, lambda e, v: refine(e.pruned, e.plan, v, [e.x]))
MISUSES.each("refine plan", NO_PLANS, lambda e, v: refine(e.pruned, e.coupling if v is ... else v, e.gm, [e.x]))
WRONG = {name: value for name, value in NO_BATCHES.items() if name != "nan"}  # which gains nothing on what is held out
MISUSES.each("refine batches", WRONG, lambda e, v: refine(e.pruned, e.plan, e.gm, v))
MISUSES.each("refine held", {**WRONG, "None": []}, lambda e, v: refine(e.pruned, e.plan, e.gm, [e.x], held=v))
for count in ("rounds", "iterations", "rows", "seed"):
    MISUSES.each(f"refine {count}", NO_COUNTS, lambda e, v, c=count: refine(e.pruned, e.plan, e.gm, [e.x], **{c: v}))
MISUSES.each("refine progress", NO_FUNCTIONS, lambda e, v: refine(e.pruned, e.plan, e.gm, [e.x], progress=v))
MISUSES.one("refine", not_pruned=lambda e: refine(e.gm, e.plan, e.gm, [e.x]))
NO_FILES = {"None": None, "number": 3, "list": ["x"], "bytes": b"x", "folder": ".", "empty": ""}
MISUSES.each("statistics load", {**NO_FILES, "missing": "nowhere.st"}, lambda e, v: Statistics.load(v))
MISUSES.each("statistics save", NO_FILES, lambda e, v: e.statistics.save(v))
MISUSES.each("statistics of", NO_STATISTICS, lambda e, v: e.statistics.of(e.coupling if v is ... else v))
MISUSES.each("statistics merge", NO_STATISTICS, lambda e, v: e.statistics.merge(e.coupling if v is ... else v))
MISUSES.each("statistics bound", NO_MODULES, lambda e, v: e.statistics.bound(v, e.coupling))
MISUSES.each("statistics bound to", NO_COUPLINGS, lambda e, v: e.statistics.bound(e.gm, e.plan if v is ... else v))

NAMES = {**ODD, "long": "n" * 5000}
UNITS = {**ODD, "fails": FailsLater(0), "fails later": FailsLater(1, torch.zeros(1))}
for name in ("set", "generator"):  # give units
    del UNITS[name]
MISUSES.each("odd resource", NAMES, lambda e, v: e.costs.resource(v))
MISUSES.each("odd along", NAMES, lambda e, v: e.costs.along(v))
MISUSES.each("odd width", ODD, lambda e, v: e.costs.macs({"conv1": v}))
MISUSES.each("odd widths of a call", ODD, lambda e, v: e.costs.operators[0].macs(v))
MISUSES.each("odd widths of a layer", ODD, lambda e, v: e.costs.layers[0].params(v))
MISUSES.each("odd axis", {**ODD, "text": "x", "None": None}, lambda e, v: e.costs.length(v))
MISUSES.each("odd axes", {**ODD, "text": "x", "None": None}, lambda e, v: e.costs.polynomial([v]))
MISUSES.each("odd products", {**ODD, "None": None, "fails": FailsLater(0)}, lambda e, v: e.costs.compile(v))
MISUSES.each("odd group", NAMES, lambda e, v: e.coupling.group(v))
MISUSES.each("odd explained", NAMES, lambda e, v: e.coupling.explain(v, "conv1.weight:0"))
MISUSES.each("odd units", UNITS, lambda e, v: e.coupling.plan({"conv1": v}))
MISUSES.each(
    "odd blocks",
    {**UNITS, "text": "x", "nested": [["a"]], "None": None},
    lambda e, v: e.coupling.plan({}, removed_blocks=v),
)
MISUSES.each("odd kept", NAMES, lambda e, v: e.plan.kept_in_block(v, 0))
MISUSES.each("odd override", ODD, lambda e, v: rule(torch.ops.aten.special_i1.default, override=v)(print))
MISUSES.each(
    "odd equation", NAMES, lambda e, v: equation_rule([torch.ops.aten.special_i1.default], v, ["self"], override=True)
)
NO_WEIGHTS = {"lazy": nn.LazyConv2d(3, 1), "lazy inside": nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(5, 1))}
MISUSES.each("verify dense", NO_WEIGHTS, lambda e, v: verify(v, e.pruned_module, e.module_plan, e.x))
MISUSES.each("verify pruned", NO_WEIGHTS, lambda e, v: verify(e.module, v, e.module_plan, e.x))
MISUSES.one(
    "verify", meta=lambda e: verify(Net().to("meta"), e.pruned_module, e.module_plan, e.x),
    pruned_on_meta=lambda e: verify(e.module, Net().to("meta"), e.module_plan, e.x),
    endless=lambda e: verify(e.gm, e.pruned, e.plan, e.x, runs=10**30),
)  # fmt: skip
MISUSES.each("observe", ODD_BATCHES, lambda e, v: observe(e.gm, e.coupling, v))
MISUSES.each("refine", ODD_BATCHES, lambda e, v: refine(e.pruned, e.plan, e.gm, v))
MISUSES.each("refine held", ODD_BATCHES, lambda e, v: refine(e.pruned, e.plan, e.gm, [e.x], held=v))
FAILING = {"fails": lambda value: 1 / 0, "class": Net, "module": Net()}
MISUSES.each("refine progress", FAILING, lambda e, v: refine(e.pruned, e.plan, e.gm, [e.x], progress=v))
del FAILING["class"]  # takes a number
MISUSES.each("observe progress", FAILING, lambda e, v: observe(e.gm, e.coupling, [e.x], progress=v))
MISUSES.each("odd statistics load", ODD_FILES, lambda e, v: Statistics.load(v))
MISUSES.each("odd statistics save", ODD_FILES, lambda e, v: e.statistics.save(v))


@pytest.fixture(scope="module")
def e(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    found = everything(tmp_path_factory.mktemp("misuse"))
    found.statistics = observe(found.gm, found.coupling, [found.x])
    found.module = Net().eval()
    found.module_plan = couple(found.module, found.x).plan({"conv1": range(4)})
    found.pruned_module = apply_plan(found.module, found.module_plan)
    return found


@pytest.mark.parametrize("name", MISUSES.calls)
def test_misuse_is_an_error_in_words(
    e: SimpleNamespace, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault(MISUSES.calls[name], e) is None
