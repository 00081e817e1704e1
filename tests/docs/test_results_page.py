"""The table of RESULTS.md: new figures replace old ones of their name, and nothing else changes."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.figures import Figure, by_data_figures
from benchmarks.results_page import BEGIN, END, PAGE, updated

EMPTY = f"# Measurements\n\nText.\n\n{BEGIN}\n{END}\n\n## More\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_figures_replace_those_of_their_name_and_the_rest_stays():
    first = updated(
        EMPTY, [Figure("zoo", "exact | networks", "1 of 2", "all", False), Figure("peers", "time", "3")], "a1"
    )
    second = updated(first, [Figure("zoo", "exact | networks", "2 of 2", "all", True)], "b2")
    rows = [line for line in second.partition(BEGIN)[2].partition(END)[0].splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if "---" not in row] == [
        "| zoo | exact \\| networks | 2 of 2 | all | yes | b2 |", "| peers | time | 3 |  |  | a1 |",
    ]  # fmt: skip
    for page in (first, second):
        assert page.partition(BEGIN)[0] == EMPTY.partition(BEGIN)[0]
        assert page.partition(END)[2] == EMPTY.partition(END)[2]
    assert updated(second, [], "c3") == second


def test_a_page_without_the_table_is_refused_and_ours_has_it():
    with pytest.raises(ValueError, match="between which the table stands"):
        updated("# Measurements\n", [], "a1")
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page, [], "a1").partition(END)[2] == page.partition(END)[2]


def test_every_benchmark_is_there_and_has_a_name_of_its_own():
    assert len({benchmark.name for benchmark in BENCHMARKS}) == len(BENCHMARKS)
    modules = {part for benchmark in BENCHMARKS for part in benchmark.command[:1] if part != "pytest"}
    assert all(importlib.util.find_spec(module) for module in modules)


def test_figures_of_several_seeds_are_their_mean_and_judged_by_it():
    row = {"start": "data", "ratio": 0.5, "steps": 270}
    (found,) = by_data_figures({"depth": 20, "rows": [{**row, "test": 86.15}, {**row, "test": 85.79}]})
    assert found.found == "85.97 % (85.79 to 86.15; 2 seeds)" and found.asked == "86.0 %" and found.met is False
