"""What each benchmark found, as lines of one table: read from the figures that it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

Data = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `met` is None where nothing was asked for."""

    benchmark: str
    figure: str
    found: str
    asked: str = ""
    met: bool | None = None


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


def by_data_figures(data: Data) -> Iterator[Figure]:
    """The mean over the seeds, for each way to begin, each share of the MACs and each number of steps."""
    name = f"accuracy_by_data, ResNet-{data['depth']}"
    for start, ratio, steps in dict.fromkeys((r["start"], r["ratio"], r["steps"]) for r in data["rows"]):
        mine = [r["test"] for r in data["rows"] if (r["start"], r["ratio"], r["steps"]) == (start, ratio, steps)]
        asked = ASKED_BY_DATA.get((data["depth"], ratio, steps)) if start == "data" else None
        found = f"{mean(mine):.2f} % ({min(mine):.2f} to {max(mine):.2f}; {len(mine)} seeds)"
        met = None if asked is None else mean(mine) >= asked
        label = f"test accuracy: {start}, {ratio:.0%} of the MACs, {steps} steps"
        yield Figure(name, label, found, "" if asked is None else f"{asked} %", met)


ASKED_BY_DATA = {
    (20, 0.5, 0): 84.0, (20, 0.5, 30): 84.5, (20, 0.5, 90): 85.2, (20, 0.5, 270): 86.0, (20, 0.5, 2000): 87.4,
    (56, 0.5, 0): 87.4, (56, 0.5, 270): 88.9,
}  # fmt: skip


def real_figures(data: Data) -> Iterator[Figure]:
    for row in data["rows"]:
        asked = ASKED_OF_REAL.get((row["network"], row["ratio"])) if row["method"] == "data" else None
        met = None if asked is None else row["score"] >= asked
        label = f"{row['network']}, {row['method']}, {row['ratio']:.0%} of the MACs"
        found = f"{row['score']:.1f} % (dense {row['dense']:.1f})"
        yield Figure("real_networks", label, found, "" if asked is None else f"{asked} %", met)


ASKED_OF_REAL = {("lite0", 0.9): 85, ("lite0", 0.75): 78, ("lite0", 0.5): 70, ("crepe", 0.5): 98}


def depth_figures(data: Data) -> Iterator[Figure]:
    for row in data["rows"]:
        which = "with depth" if row["depth"] else "widths alone"
        gone = f"{row['blocks_removed']} blocks gone"
        found = f"divergence {row['divergence']:.4f}, {row['ms_kept']:.1%} of the ms, {gone}"
        yield Figure("depth", f"{row['network']}, {which}", found)


def candidate_figures(data: Data) -> Iterator[Figure]:
    found, forward = data["seconds"]["candidate"], data["seconds"]["dense forward pass"]
    limit = 1.5 * forward + 2
    said = f"{found:.1f} s, {found / forward:.2f} of the forward pass"
    yield Figure("candidate_cost", "a candidate of ResNet-50", said, f"{limit:.1f} s", found <= limit)


def budget_figures(data: Data) -> Iterator[Figure]:
    used = {(row["network"], row["ratio"]): row["used"] for row in data["rows"]}
    (name, ratio), least = min(used.items(), key=lambda item: item[1])
    yield Figure("budgets", f"least share used of {len(used)} budgets", f"{least:.2%} ({name} at {ratio:.0%})")
