"""`python -m benchmarks.modules`: modules pruned as they are, beside their graphs: groups, costs, proof, seconds.

One line a network. Lines are kept in a file, and networks that stand there are not run again: a list can be run in
pieces, and `--show` says what the file holds so far, list by list.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import passes
from benchmarks import machine
from benchmarks.options import command_line
from benchmarks.processes import each
from benchmarks.report import table

TOLERANCE, COVERED = 1e-9, 0.95
Make = Callable[[], tuple[nn.Module, Any]]
After = Callable[[nn.Module, nn.Module, Any], None]  # (original, cut, inputs): raises where a use of the cut one fails


@dataclass(frozen=True)
class Case:
    """One network: how it is made, and what else its users do with it once it is cut. graph: whether one is tried."""

    name: str
    make: Make
    after: After | None = None
    graph: bool = True


@dataclass
class Line:
    """What was found. differs: where the module's analysis is not that of its graph. Seconds are of the processor.

    batches: the sizes of a batch that masked and cut were equal at. sizes: the other lengths and image sizes.
    """

    name: str
    source: str = ""
    groups: int = 0
    coverage: float = 0.0
    real: bool = False
    error: float | None = None
    inputs: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    class_kept: bool | None = None
    graph: str = "not tried"
    differs: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    note: str = ""
    specialised: list[str] = field(default_factory=list)
    frozen: dict[str, int] = field(default_factory=dict)
    module_seconds: float = 0.0
    graph_seconds: float = 0.0

    @property
    def right(self) -> bool:
        return not self.failures and not self.differs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the networks that were asked for and are not in the file yet; 1 where one of all is not right."""
    options = read_options(arguments)
    machine.one_thread()
    done = _read(options.out)
    if options.show:
        print("\n".join(report([line for line in done.values() if line["source"] in options.source])))
        return 0
    known = {case.name: (source, case) for source in options.source for case in SOURCES[source]()}
    sources = {name: source for name, (source, _) in known.items()}
    chosen = [case for name, (_, case) in known.items() if any(fnmatch.fnmatchcase(name, p) for p in options.only)]
    left = [case for case in chosen if case.name not in done or (options.failed and _is_wrong(done[case.name]))]

    def checked(case: Case) -> Line:
        return check(case, options.repeats)

    limits = {"jobs": options.jobs, "seconds": options.seconds, "memory_gib": options.memory}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case, line, why in each(checked, left, **limits):
        line = line or Line(case.name, failures={"process": why})
        line.source = sources[case.name]
        done[case.name] = asdict(line)
        with options.out.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        print(said(line), flush=True)
    found = [done[case.name] for case in chosen if case.name in done]
    print("\n".join(report(found)))
    return 1 if any(_is_wrong(line) for line in found) else 0


def report(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lists as a Markdown table, then every network that something is to be said of, with its reason."""
    rows, said_of = [], []
    for source in SOURCES:
        mine = [line for line in lines if line["source"] == source]
        if mine:
            beside = [line for line in mine if line["graph"] == "captured"]
            cut = [line for line in mine if line["error"] is not None]
            rows.append([
                source, len(mine), f"{sum(not line['differs'] for line in beside)} of {len(beside)}",
                f"{sum(line['error'] <= TOLERANCE for line in cut)} of {len(mine)}",
                sum(len(set(line["batches"])) > 1 for line in cut), sum(bool(line["sizes"]) for line in cut),
                sum(bool(line["class_kept"]) for line in mine), sum("after" not in line["failures"] for line in cut),
                f"{min(line['coverage'] for line in mine):.1%}",
                " / ".join(f"{sum(line[f'{form}_seconds'] for line in beside):.1f}" for form in ("module", "graph")),
            ])  # fmt: skip
            said_of += [f"- {line['name']}: {why}" for line in mine for why in _notable(line)]
    return [*table(COLUMNS, [[str(cell) for cell in row] for row in rows]), "", *said_of]


COLUMNS = (
    "list", "networks", "groups and costs equal the graph's", "masked == cut", "at two batch sizes", "two lengths",
    "class kept", "uses afterwards", "least covered", "seconds, module / graph",
)  # fmt: skip


def _notable(line: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{step}: {why}" for step, why in line["failures"].items())
    yield from line["differs"]
    if line["graph"] not in ("captured", "not tried"):
        yield f"graph {line['graph']}"
    if line["coverage"] < COVERED:
        why = "; ".join(f"{count:,} elements: {reason}" for reason, count in line["frozen"].items())
        yield f"{line['coverage']:.1%} of the parameters covered: {why}"
    if line["error"] is not None and not (len(set(line["batches"])) > 1 and line["sizes"]):
        yield f"proven at {', '.join(line['inputs'])}; {line['note']}"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(
        "modules", __doc__, "only repeats jobs seconds memory", repeats=1, out=Path("benchmarks/results/modules.jsonl")
    )
    parser.add_argument("source", nargs="+", choices=sorted(SOURCES))
    parser.add_argument("--failed", action="store_true", help="run again what is in the file and was not right")
    parser.add_argument("--show", action="store_true", help="run nothing; say what the file holds")
    return parser.parse_args(arguments)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return {line["name"]: line for line in lines}


def _is_wrong(line: Mapping[str, Any]) -> bool:
    return bool(line["failures"] or line["differs"])


def check(case: Case, repeats: int = 1) -> Line:
    """Everything that is asked of one network; what fails is noted in its line."""
    warnings.filterwarnings("ignore")
    line = Line(case.name)
    step = "make"
    try:
        model, inputs = case.make()
        model.eval()
        step = "couple"
        coupling, line.module_seconds = _timed(lambda: passes.couple(model, inputs), repeats)
        line.groups, line.coverage = len(coupling.groups), round(coupling.coverage().params, 4)
        if coupling.module is not None:  # a network of the list may be a graph itself
            line.real, line.specialised = coupling.module.real, list(coupling.module.specialised)
        line.frozen = dict(sorted(coupling.coverage().missing.items(), key=lambda item: -item[1])[:4])
        if case.graph:
            _beside_graph(line, coupling, model, inputs, repeats)
        if not coupling.groups:
            return line
        step = "apply_plan"
        plan = coupling.plan(halves(coupling))
        cut = passes.apply_plan(model, plan)
        line.class_kept = classes(cut) == classes(model)
        step = "counts"
        _recount(cut, coupling, plan)
        step = "verify"
        certificate = passes.verify(model, cut, plan, inputs, TOLERANCE)
        line.error, line.inputs, line.note = certificate.max_error, list(certificate.inputs), certificate.note
        line.batches, line.sizes = list(certificate.batch_sizes), [s for s in certificate.sizes if "length" in s]
        if case.after is not None:
            step = "after"
            case.after(model, cut, inputs)
    except Exception as error:  # a table of what fails must not end there
        line.failures[step] = _said(error)
    return line


def _beside_graph(line: Line, coupling: passes.Coupling, model: nn.Module, inputs: Any, repeats: int) -> None:
    try:
        gm, first = _timed(lambda: passes.capture(model, inputs), repeats)
        graph, second = _timed(lambda: passes.couple(gm, inputs), repeats)
    except Exception as error:  # a network without a graph is what modules are for
        line.graph = f"none: {_said(error)}"
        return
    line.graph, line.graph_seconds = "captured", first + second
    line.differs = differences(coupling, graph)


def differences(module: passes.Coupling, graph: passes.Coupling) -> list[str]:
    """In which groups, slices and costs two couplings of one network differ; the first few."""
    found = []
    known = set(graph.structure.tensors)  # a graph has no parameters that it does not use
    theirs = {_extent(group, known): group for group in graph.groups}
    ours = {_extent(group, known): group for group in module.groups}
    for extent, group in ours.items():
        if extent not in theirs:
            continue  # a graph that finds less is no standard
        elif theirs[extent].name != group.name:
            found.append(f"{group.name} of the module is {theirs[extent].name} of the graph")
        elif (theirs[extent].mixed, theirs[extent].blocks) != (group.mixed, group.blocks):
            found.append(f"{group.name}: mixed or blocks differ")
    found += [f"only the graph has {group.name} ({group.size})" for key, group in theirs.items() if key not in ours]
    costs = [(passes.cost(c).macs(), passes.cost(c).params()) for c in (module, graph)]
    if costs[0][0] != costs[1][0] or costs[0][1] < costs[1][1]:  # a graph leaves out what it does not use
        found.append(f"MACs and parameters {costs[0]}, of the graph {costs[1]}")
    return found[:6]


def _extent(group: passes.Group, known: set[str]) -> Any:
    """Which positions of which `known` tensors a group takes, whatever its name."""
    slices = [s for s in group.slices if s.tensor in known]
    return group.size, frozenset((s.tensor, s.dim, s.index.tobytes(), s.role) for s in slices)


def halves(coupling: passes.Coupling, seed: int = 0) -> dict[str, list[int]]:
    """A random half of the units of every group."""
    random = np.random.default_rng(seed)
    return {
        name: np.sort(random.permutation(size)[: size - size // 2]).tolist() for name, size in coupling.widths.items()
    }


def classes(module: nn.Module) -> list[type]:
    """The class of every module; attention that holds fewer heads counts as torch's own, whose place it takes."""
    from passes.stream.head_attention import HeadAttention

    return [nn.MultiheadAttention if type(m) is HeadAttention else type(m) for m in module.modules()]


def _recount(cut: nn.Module, coupling: passes.Coupling, plan: passes.Plan) -> None:
    predicted, counted = passes.cost(coupling).params(plan.widths), sum(p.numel() for p in cut.parameters())
    if predicted != counted:
        raise AssertionError(f"the polynomial says {predicted:,} parameters, the module has {counted:,}")


def _timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        result = function()
        seconds.append(time.process_time() - begun)
    return result, round(min(seconds), 4)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


def said(line: Line) -> str:
    """One line for the eye."""
    wrong = [*(f"{step}: {why}" for step, why in line.failures.items()), *line.differs]
    proven = "" if line.error is None else f"error {line.error:.0e} on {len(line.inputs)}"
    kept = {None: "", True: "class kept", False: "CLASS CHANGED"}[line.class_kept]
    graph = f"graph {line.graph_seconds:.3f} s" if line.graph == "captured" else f"graph {line.graph[:90]}"
    parts = [f"{line.groups} groups, {line.coverage:.1%}", proven, kept, f"module {line.module_seconds:.3f} s", graph]
    parts += ["on values"] if line.real else []
    return f"{'ok ' if line.right else 'BAD'} {line.name}: {', '.join(p for p in parts if p)} {'; '.join(wrong)}"


def _torchvision() -> list[Case]:
    from benchmarks.networks import Network, build, networks

    def make(network: Network) -> Make:
        return lambda: (build(network), torch.randn(network.shape))

    return [Case(network.name, make(network)) for network in networks()]


def _tiny() -> list[Case]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import TABLE

    def make(row: Any) -> Make:
        return lambda: (row.make(), row.inputs())

    def seeded(row: Any) -> Make:
        def made() -> tuple[nn.Module, Any]:
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float64)  # some have tables in double precision
            return make(row)()

        return made

    return [Case(name, seeded(row)) for name, row in TABLE.items()]


def _transformers() -> list[Case]:
    from benchmarks.module_networks import transformers_cases

    return transformers_cases()


def _others() -> list[Case]:
    from benchmarks.module_networks import other_cases

    return other_cases()


def _speech() -> list[Case]:
    from benchmarks.speech_networks import speech_cases

    return speech_cases()


SOURCES: dict[str, Callable[[], list[Case]]] = {
    "torchvision": _torchvision, "tiny": _tiny, "transformers": _transformers, "others": _others,
    "speech": _speech,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
