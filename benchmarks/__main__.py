"""`python -m benchmarks`: every benchmark, one after the other, and one table of what was asked for and what was found.

Each runs in a process of its own and writes its page (``zoo.md``, ``peers.md``, ...); this one writes ``benchmarks.md``
and ``benchmarks.json`` from their figures. ``--quick`` takes few networks and few steps, a quarter of an hour in all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import machine
from benchmarks.peers import QUICK
from benchmarks.report import table, write

Data = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `met` is None where nothing was asked for."""

    benchmark: str
    figure: str
    found: str
    asked: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Benchmark:
    """How one is run, also quickly, the file that its figures come in, and how to read them."""

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...]
    figures: Callable[[Data], Iterator[Figure]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run those that were asked for; 1 where one fails or misses what is asked of it."""
    options = read_options(arguments)
    machine.one_thread()
    about, figures, seconds, failed = machine.describe(), [], {}, []
    for benchmark in BENCHMARKS:
        if benchmark.name not in options.only:
            continue
        begun = time.monotonic()
        print(f"{benchmark.name} ...", file=sys.stderr, flush=True)
        code = run(benchmark, options.quick, options.out)
        seconds[benchmark.name] = round(time.monotonic() - begun)
        path = options.out / f"{benchmark.name}.json"
        if not path.exists():
            failed.append(f"{benchmark.name}: ended with code {code} and left no figures")
            continue
        figures += list(benchmark.figures(json.loads(path.read_text(encoding="utf-8"))))
    text = report(figures, failed, seconds, about, options.quick)
    data = {"machine": about, "quick": options.quick, "seconds": seconds, "failed": failed}
    write(options.out, "benchmarks", text, data | {"figures": [asdict(figure) for figure in figures]})
    return 1 if failed or any(figure.met is False for figure in figures) else 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few networks, few steps")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for all pages and figures")
    return parser.parse_args(arguments)


def run(benchmark: Benchmark, quick: bool, out: Path) -> int:
    """Run one; what an earlier run has left is removed first, so that old figures are not taken for new ones."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{benchmark.name}.json"
    path.unlink(missing_ok=True)
    command = [part.format(out=out, json=path) for part in (*benchmark.command, *(benchmark.quick if quick else ()))]
    return subprocess.run([sys.executable, "-m", *command], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def report(figures: Sequence[Figure], failed: Sequence[str], seconds: dict[str, int], about: Data, quick: bool) -> str:
    """The Markdown page."""
    rows = [
        [f.benchmark, f.figure, f.found, f.asked, "" if f.met is None else "yes" if f.met else "NO"] for f in figures
    ]
    spent = ", ".join(f"{name} {value} s" for name, value in seconds.items())
    return "\n".join(
        [
            "# Benchmarks of fxprune",
            "",
            f"{machine.sentence(about)}.{' A quick run.' if quick else ''} Took {spent}.",
            "",
            *table(("benchmark", "figure", "found", "asked for", "met"), rows),
            *(["", *[f"- {line}" for line in failed]] if failed else []),
        ]
    )


def zoo_figures(data: Data) -> Iterator[Figure]:
    rows = data["rows"]
    exact = sum(row["exact"] for row in rows)
    yield Figure("zoo", "networks exact", f"{exact} of {len(rows)}", "all", exact == len(rows))
    images = [row for row in rows if row["family"] == "classification"]
    covered = [row for row in images if row["weights_prunable"] >= 0.99]
    others = ", ".join(f"{row['name']} {row['weights_prunable']:.1%}" for row in images if row not in covered)
    found = f"{len(covered)} of {len(images)}" + (f" (the others: {others})" if others else "")
    yield Figure("zoo", "99 % of the weights prunable", found, "each classification network, or the reason")
    for step in ("capture", "couple", "cost", "prune", "verify"):
        spent = [row["seconds"][step] for row in rows if step in row["seconds"]]
        if spent:
            yield Figure("zoo", f"{step}: median, longest", f"{median(spent):.3f} s, {max(spent):.2f} s")


def speed_figures(data: Data) -> Iterator[Figure]:
    """From pytest-benchmark's JSON; the limits are those that the cases assert."""
    from benchmarks.test_speed import ANALYSIS_S, ROUND_S

    for case in data["benchmarks"]:
        network, stats = case["params"]["network"], case["stats"]
        limit = {"test_analysis": ANALYSIS_S[network], "test_plan_a_round": ROUND_S}.get(case["name"].partition("[")[0])
        found = f"least {1000 * stats['min']:.1f} ms, median {1000 * stats['median']:.1f} ms"
        asked = "" if limit is None else f"{1000 * limit:.0f} ms"
        met = None if limit is None else stats["min"] <= limit
        yield Figure("speed", f"{case['group']}, {network}", found, asked, met)


def growth_figures(data: Data) -> Iterator[Figure]:
    for series, exponent in data["exponents"].items():
        yield Figure("growth", f"exponent with depth, {series}", f"{exponent:.2f}", "1 (linear)", exponent < 1.2)
    first, last = data["widths"][0], data["widths"][-1]
    narrow, wide = (f"{w['added_mib']:.0f} MiB beside {w['weights_mib']:.0f} of weights" for w in (first, last))
    met = last["added_mib"] < 0.1 * last["weights_mib"]
    yield Figure("growth", "memory of the analysis", f"{narrow}, {wide}", "no copy of the weights", met)


def peers_figures(data: Data) -> Iterator[Figure]:
    found = data["summary"]
    for key, label in (("fxprune", "fxprune"), ("torch_pruning", "Torch-Pruning")):
        c = found[key]
        text = (
            f"{c['exact']} exact, {c['wrong']} wrong, {c['fails']} fail, {c['does_not_train']} do not train afterwards"
        )
        yield Figure("peers", f"{label} on {c['networks']} networks", text)
    if found["geometric_mean_ratio"]:
        ratio, (name, least) = found["geometric_mean_ratio"], found["least_ratio"]
        yield Figure(
            "peers", f"time, Torch-Pruning over fxprune, {found['both']} networks", f"{ratio:.2f}", "3", ratio >= 3
        )
        yield Figure("peers", "the same, least", f"{least:.2f} ({name})", "1 / 1.2", least >= 1 / 1.2)
        yield Figure("peers", "the same, small images", f"{found['geometric_mean_ratio_small_images']:.2f}")


def cifar_figures(data: Data) -> Iterator[Figure]:
    rows, ratio = data["rows"], data["settings"]["ratio"]
    for name, key in (
        ("dense, fine-tuned the same", "tuned_dense_test"),
        (f"NetAdapt, {ratio:.0%} of the MACs", "pruned_test"),
    ):
        yield Figure("cifar_resnet20", f"test accuracy: {name}", f"{mean(row[key] for row in rows):.2f} %")
    overhead = max(row["overhead"] for row in rows)
    yield Figure("cifar_resnet20", "search outside training and evaluation", f"{overhead:.2%}", "2 %", overhead <= 0.02)


def accuracy_figures(data: Data) -> Iterator[Figure]:
    rows = data["rows"]
    for method, ratio in dict.fromkeys((row["method"], row["ratio"]) for row in rows):
        mine = [row["test"] for row in rows if (row["method"], row["ratio"]) == (method, ratio)]
        where = "" if method == "dense" else f", {ratio:.0%} of the MACs"
        found = f"{mean(mine):.2f} % ({min(mine):.2f} to {max(mine):.2f}; {len(mine)} seeds)"
        yield Figure("accuracy", f"test accuracy: {method}{where}", found)


def latency_figures(data: Data) -> Iterator[Figure]:
    for row in data["networks"]:
        found = (
            f"share {row['share']:.3f} of the dense one's; predictions off by {row['error_median']:.1%} in the median"
        )
        yield Figure("latency_promise", f"half of the latency, {row['network']}", found)


_OUT = ("--out", "{out}")
BENCHMARKS = (
    Benchmark("zoo", ("benchmarks.zoo", *_OUT), ("--only", *QUICK, "s3d", "fcn_resnet50", "retinanet*"), zoo_figures),
    Benchmark(
        "speed",
        ("pytest", "benchmarks/test_speed.py", "--benchmark-only", "-q", "--benchmark-json={json}"),
        ("-k", "analysis or round"),
        speed_figures,
    ),
    Benchmark("growth", ("benchmarks.growth", *_OUT), ("--repeats", "2"), growth_figures),
    Benchmark("peers", ("benchmarks.peers", *_OUT), ("--quick",), peers_figures),
    Benchmark(
        "cifar_resnet20",
        ("benchmarks.cifar_resnet20", *_OUT),
        ("--rounds", "2", "--candidates", "3", "--long", "20"),
        cifar_figures,
    ),
    Benchmark(
        "accuracy",
        ("benchmarks.accuracy", *_OUT),
        ("--ratios", "0.8", "--seeds", "1", "--candidates", "3", "--long", "20"),
        accuracy_figures,
    ),
    Benchmark("latency_promise", ("benchmarks.latency_promise", *_OUT), ("resnet18",), latency_figures),
)


if __name__ == "__main__":
    sys.exit(main())
