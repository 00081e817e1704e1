"""`python -m benchmarks`: every benchmark, one after the other, and one table of what was asked for and what was found.

Each runs in a process of its own and writes its page (``zoo.md``, ``peers.md``, ...); this one writes ``benchmarks.md``
and ``benchmarks.json`` from their figures, and puts them into the table of ``RESULTS.md``, beside the commit. All
together take about a day of one core; ``--only`` takes some, and the rest of the table stays. ``--quick`` takes few
networks and few steps, a quarter of an hour in all, and leaves ``RESULTS.md`` alone.
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

from benchmarks import figures, machine
from benchmarks.figures import Data, Figure
from benchmarks.peers import QUICK
from benchmarks.report import table, write
from benchmarks.results_page import HEADER, PAGE, cells, commit_here, updated


@dataclass(frozen=True)
class Benchmark:
    """How one is run, also quickly, and how its figures are read. written: the file of these, where not `name`."""

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...]
    figures: Callable[[Data], Iterator[Figure]]
    written: str = ""

    @property
    def file(self) -> str:
        return self.written or self.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run those that were asked for; 1 where one fails or misses what is asked of it."""
    options = read_options(arguments)
    machine.one_thread()
    about, commit = machine.describe(), commit_here()
    found: list[Figure] = []
    seconds: dict[str, int] = {}
    failed: list[str] = []
    for benchmark in BENCHMARKS:
        if benchmark.name not in options.only:
            continue
        begun = time.monotonic()
        print(f"{benchmark.name} ...", file=sys.stderr, flush=True)
        code = run(benchmark, options.quick, options.out)
        seconds[benchmark.name] = round(time.monotonic() - begun)
        path = options.out / f"{benchmark.file}.json"
        if not path.exists():
            failed.append(f"{benchmark.name}: ended with code {code} and left no figures")
            continue
        found += list(benchmark.figures(json.loads(path.read_text(encoding="utf-8"))))
        if not options.quick:
            PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), found, commit), encoding="utf-8")
    text = report(found, failed, seconds, about, options.quick)
    data = {"machine": about, "commit": commit, "quick": options.quick, "seconds": seconds, "failed": failed}
    write(options.out, "benchmarks", text, data | {"figures": [asdict(figure) for figure in found]})
    return 1 if failed or any(figure.met is False for figure in found) else 0


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
    path = out / f"{benchmark.file}.json"
    path.unlink(missing_ok=True)
    command = [part.format(out=out, json=path) for part in (*benchmark.command, *(benchmark.quick if quick else ()))]
    return subprocess.run([sys.executable, "-m", *command], env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def report(figures: Sequence[Figure], failed: Sequence[str], seconds: dict[str, int], about: Data, quick: bool) -> str:
    """The Markdown page."""
    rows = [cells(figure) for figure in figures]
    spent = ", ".join(f"{name} {value} s" for name, value in seconds.items())
    return "\n".join(
        [
            "# Benchmarks of fxprune",
            "",
            f"{machine.sentence(about)}.{' A quick run.' if quick else ''} Took {spent}.",
            "",
            *table(HEADER[:-1], rows),
            *(["", *[f"- {line}" for line in failed]] if failed else []),
        ]
    )


_OUT = ("--out", "{out}")
BENCHMARKS = (
    Benchmark(
        "zoo",
        ("benchmarks.zoo", *_OUT),
        ("--only", *QUICK, "s3d", "fcn_resnet50", "retinanet*"),
        figures.zoo_figures,
    ),
    Benchmark(
        "speed",
        ("pytest", "benchmarks/test_speed.py", "--benchmark-only", "-q", "--benchmark-json={json}"),
        ("-k", "analysis or round"),
        figures.speed_figures,
    ),
    Benchmark("growth", ("benchmarks.growth", *_OUT), ("--repeats", "2"), figures.growth_figures),
    Benchmark("peers", ("benchmarks.peers", *_OUT), ("--quick",), figures.peers_figures),
    Benchmark(
        "cifar_resnet20",
        ("benchmarks.cifar_resnet20", *_OUT),
        ("--rounds", "2", "--candidates", "3", "--long", "20"),
        figures.cifar_figures,
    ),
    Benchmark(
        "accuracy",
        ("benchmarks.accuracy", *_OUT),
        ("--ratios", "0.8", "--seeds", "1", "--candidates", "3", "--long", "20"),
        figures.accuracy_figures,
    ),
    Benchmark("latency_promise", ("benchmarks.latency_promise", *_OUT), ("resnet18",), figures.latency_figures),
    *(
        Benchmark(
            f"accuracy_by_data, ResNet-{depth}",
            ("benchmarks.accuracy_by_data", "--depth", str(depth), *_OUT),
            ("--ratios", "0.5", "--steps", "0", "30", "--seeds", "0", "--calibration", "500"),
            figures.by_data_figures,
            f"accuracy_by_data_{depth}",
        )
        for depth in (20, 56)
    ),
    Benchmark(
        "real_networks",
        ("benchmarks.real_networks", *_OUT),
        ("--networks", "crepe", "--methods", "data", "--ratios", "0.5"),
        figures.real_figures,
    ),
    Benchmark("candidate_cost", ("benchmarks.candidate_cost", *_OUT), ("--images", "16"), figures.candidate_figures),
    Benchmark("budgets", ("benchmarks.budgets", *_OUT), ("resnet18",), figures.budget_figures),
    Benchmark("depth", ("benchmarks.depth", *_OUT), ("--networks", "vit12", "--steps", "100"), figures.depth_figures),
)


if __name__ == "__main__":
    sys.exit(main())
