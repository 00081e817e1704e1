"""`python -m benchmarks.analysis_speed`: the analysis of a module beside that of its graph, in processor seconds.

For each classification network of torchvision, at the image size that it is made for: ``couple(module)`` beside
``capture`` and ``couple`` of the graph. Each runs in a process of its own; the two take turns, network by network, and
the least of the runs counts, so that a machine with other work favours neither.

An older version is compared by its checkout, with its own benchmarks; what it lacks (the module's analysis) is not
asked of it:

    git worktree add ../older 2837a72
    python -m benchmarks.analysis_speed --against ../older
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.networks import networks
from benchmarks.options import command_line
from benchmarks.peers import NOT_COMPARED
from benchmarks.report import geometric_mean, table, write
from benchmarks.zoo import choose

HERE = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on the networks that were asked for."""
    options = read_options(arguments)
    machine.one_thread()
    names = [network.name for network in choose(networks(), options.only, ("classification",))]
    names = [name for name in names if not (options.peers and name in NOT_COMPARED)]
    about, rows = machine.describe(), list[dict[str, Any]]()
    with Analysis(options.route, HERE) as ours, Analysis("graph", options.against) as theirs:
        for name in names:
            pairs = [(ours.seconds(name), theirs.seconds(name)) for _ in range(options.repeats)]
            mine, other = (min(seconds) for seconds in zip(*pairs, strict=True))
            rows.append({"name": name, options.route: mine, "against": other, "ratio": mine / other})
            print(f"{len(rows)}/{len(names)} {name}: {1000 * mine:.1f} ms, {1000 * other:.1f} ms", file=sys.stderr)
    text = report(rows, about, options.route, "" if options.against == HERE else " of the older version")
    write(options.out, "analysis_speed", text, {"machine": about, "summary": summary(rows), "rows": rows})
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line("analysis_speed", __doc__, "only repeats", repeats=5)
    parser.add_argument("--peers", action="store_true", help="of these, the 73 that benchmarks.peers compares")
    parser.add_argument("--route", choices=("module", "graph"), default="module", help="what is analysed here")
    parser.add_argument("--against", type=Path, default=HERE, metavar="FOLDER", help="whose graphs are analysed")
    return parser.parse_args(arguments)


class Analysis:
    """A process that analyses networks with the code of one checkout. route: "module" or "graph"."""

    def __init__(self, route: str, checkout: Path) -> None:
        code = f"{inspect.getsource(serve)}\nserve({route!r})"
        variables = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables,
            cwd=checkout,
        )  # fmt: skip

    def seconds(self, name: str) -> float:
        """Of the processor, for one analysis of the network of that name."""
        assert self._process.stdin is not None and self._process.stdout is not None, "pipes were asked for"
        print(name, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{name}: its analysis ended the process; see above")
        return float(json.loads(answer))

    def __enter__(self) -> Analysis:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()


def serve(route: str) -> None:
    """For each name of a network that is read, write the seconds of one analysis. Needs nothing outside itself."""
    import gc
    import json
    import os
    import sys
    import time
    import warnings

    import torch

    import passes
    from benchmarks.networks import build, networks
    from benchmarks.peers import native

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a network prints is no answer
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    known = {network.name: native(network) for network in networks()}
    name, model, example = "", torch.nn.Module(), torch.empty(0)

    def analyse() -> None:
        passes.couple(model if route == "module" else passes.capture(model, example), example)

    for line in sys.stdin:
        if line.strip() != name:
            name = line.strip()
            model, example = build(known[name], meta=True), torch.zeros(known[name].shape)
            analyse()  # what is found once in a process (tables of operators, imports) is not timed
        gc.collect()
        begun = time.process_time()
        analyse()
        print(json.dumps(time.process_time() - begun), file=answers, flush=True)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean ratio, and the networks at both ends."""
    order = sorted(rows, key=lambda row: row["ratio"])
    return {
        "networks": len(rows),
        "geometric_mean_ratio": geometric_mean(row["ratio"] for row in rows),
        "least": [[row["name"], row["ratio"]] for row in order[:5]],
        "most": [[row["name"], row["ratio"]] for row in order[:-6:-1]],
    }


def report(rows: Sequence[dict[str, Any]], about: dict[str, Any], route: str, whose: str) -> str:
    """The Markdown page."""
    found = summary(rows)
    cells = [[r["name"], f"{1000 * r[route]:.1f}", f"{1000 * r['against']:.1f}", f"{r['ratio']:.2f}"] for r in rows]
    most = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found["most"])
    return "\n".join(
        [
            "# The analysis of modules beside that of graphs",
            "",
            f"{machine.sentence(about)}.",
            "",
            f"**The analysis from the {route} takes {found['geometric_mean_ratio']:.2f} times as long as capture and "
            f"couple{whose}**, in the geometric mean of {found['networks']} networks (most: {most}).",
            "",
            *table(("network", f"{route} ms", f"graph{whose} ms", "ratio"), cells),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
