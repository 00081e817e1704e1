"""The command line of latency tables, on files made of formulas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from latency_nets import INPUT, FormulaDevice, Net
from typer.testing import CliRunner

from fxprune.cli.latency import app
from fxprune.latency import LatencyTable, width_grid
from fxprune.latency.sampling import Network, build
from passes import capture, couple


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "300"})
    return result.exit_code, result.output


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    gm = capture(Net().eval(), INPUT)
    coupling = couple(gm, INPUT)
    network = Network(gm, coupling, INPUT, width_grid(coupling))
    paths = tmp_path / "plain.json", tmp_path / "stairs.json"
    for path, step in zip(paths, (1, 16), strict=True):
        build(network, FormulaDevice(step), path=path)
    return paths


def test_show_lists_units_and_predicts_a_model(tables: tuple[Path, Path]) -> None:
    code, text = run("show", tables[0])
    assert code == 0 and "formula 1, 1 thread on paper" in text
    assert "convolution(1,a,12,12; b,a,1,1; b -> 1,b,12,12)" in text and "8 to 96" in text
    code, text = run("show", *tables, "--model", "latency_nets:Net", "--input", "1,3,12,12")
    assert code == 0 and "whole network" in text and "stem" in text
    code, text = run("show", tables[0], "--model", "latency_nets:Net", "--input", "1,3,16,16")
    assert code == 1 and "lacks 6 of the network's 7 units" in text


def test_compare(tables: tuple[Path, Path]) -> None:
    code, text = run("compare", *tables)
    assert code == 0 and "units in both, median ratio 1." in text


def test_damaged_files_are_one_line_of_error(tables: tuple[Path, Path]) -> None:
    tables[0].write_text("{}")
    code, text = run("show", tables[0])
    assert code == 1 and "plain.json" in text and "Traceback" not in text


def test_build_measures_here_and_completes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    words = ("build", "latency_nets:Net", "--input", "1,3,12,12", "--backend", "eager", "--table", path)
    code, text = run(*words, "--networks", "3")
    assert code == 0 and "6 units, 22 samples" in text and "whole network" in text
    before = LatencyTable.load(path).samples
    code, _ = run(*words, "--networks", "3")
    assert code == 0 and LatencyTable.load(path).samples == before
    code, text = run("build", "latency_nets:Net", "--input", "1,3,12,12", "--backend", "tpu", "--table", path)
    assert code == 1 and "no latency backend is called 'tpu'" in text


def test_help_imports_no_torch() -> None:
    code = "import sys, fxprune.cli.latency; print([m for m in ('torch', 'onnx', 'rich.table') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
