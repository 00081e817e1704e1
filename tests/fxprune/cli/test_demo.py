"""The demonstration: an honest split, a budget that is met, files that bring the pruned network back."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fxprune.cli.demo import (
    BUDGET_RATIO,
    Demo,
    Steps,
    accuracy,
    latency_backend,
    load_digits,
    load_pruned,
    print_demo,
    run_demo,
)
from fxprune.errors import InputError
from passes import Plan

pytest.importorskip("sklearn")
SHORT = Steps(train=80, candidate=2, finetune=40)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, Path]:
    out = tmp_path_factory.mktemp("demo")
    return run_demo(out, seed=3, steps=SHORT), out


def test_every_digit_is_in_exactly_one_part() -> None:
    digits = load_digits(seed=0)
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part.labels) for part in parts] == [1078, 359, 360]
    everything = torch.cat([part.images for part in parts]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything) == 1797  # no image twice, so none in two parts
    assert all(part.labels.bincount(minlength=10).min() >= 0.09 * len(part.labels) for part in parts)
    assert digits.train.images.mean().abs() < 1e-5 and abs(digits.train.images.std() - 1) < 1e-5


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    first, again, other = (load_digits(seed).test.images for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_budget_is_met_and_the_network_certified(short_run: tuple[Demo, Path]) -> None:
    demo, _ = short_run
    dense, tuned, pruned = demo.networks
    assert pruned.macs <= BUDGET_RATIO * dense.macs and pruned.params < dense.params
    assert tuned.widths == dense.widths and tuned.macs == dense.macs
    assert demo.rounds > 0 and demo.max_error <= 1e-9
    assert all(pruned.widths[group] <= width for group, width in dense.widths.items())


def test_the_saved_files_bring_the_pruned_network_back(short_run: tuple[Demo, Path]) -> None:
    demo, out = short_run
    pruned = load_pruned(out)
    assert accuracy(pruned, load_digits(demo.seed).test) == demo.networks[2].test
    assert sum(p.numel() for p in pruned.parameters()) == demo.networks[2].params
    assert Plan.from_json((out / "plan.json").read_text()).widths == demo.networks[2].widths
    assert json.loads((out / "summary.json").read_text())["networks"][2]["macs"] == demo.networks[2].macs


def test_the_table_shows_before_and_after(short_run: tuple[Demo, Path]) -> None:
    demo, _ = short_run
    console = Console(width=80, file=io.StringIO())
    print_demo(demo, console)
    shown = console.file.getvalue()
    dense, _, pruned = demo.networks
    assert f"{dense.macs:,}" in shown and f"{pruned.macs:,}" in shown and f"{pruned.test:.2%}" in shown
    assert all(f" {group} " in shown for group in dense.widths)


def test_latency_is_measured_in_onnx_runtime_where_it_is_installed(
    short_run: tuple[Demo, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    assert short_run[0].backend.startswith("onnxruntime" if installed else "eager")
    monkeypatch.setattr("fxprune.cli.demo.importlib.util.find_spec", lambda name: None)
    assert latency_backend().setting.backend == "eager"


def test_the_report_is_written(short_run: tuple[Demo, Path]) -> None:
    pytest.importorskip("matplotlib")
    demo, out = short_run
    assert demo.report == str(out / "report.html")
    assert "macs at 0.4 of the start" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_networks(short_run: tuple[Demo, Path], tmp_path: Path) -> None:
    demo, out = short_run
    again = run_demo(tmp_path, seed=demo.seed, steps=SHORT)
    assert (tmp_path / "plan.json").read_text() == (out / "plan.json").read_text()
    assert (tmp_path / "pruned.safetensors").read_bytes() == (out / "pruned.safetensors").read_bytes()
    assert again.networks[2].test == demo.networks[2].test


@pytest.mark.slow
def test_the_whole_demo_stays_within_a_point_of_the_dense_network(tmp_path: Path) -> None:
    demo = run_demo(tmp_path)
    _, tuned, pruned = demo.networks
    assert pruned.test >= tuned.test - 0.01
    assert demo.seconds < 180


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"my": "plan"}')
    with pytest.raises(InputError, match=r"plan\.json exists, and is of no demo"):
        run_demo(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_damaged_weights_are_not_loaded(short_run: tuple[Demo, Path], tmp_path: Path) -> None:
    for name in ("pruned.safetensors", "plan.json"):
        (tmp_path / name).write_bytes((short_run[1] / name).read_bytes())
    whole = (tmp_path / "pruned.safetensors").read_bytes()
    (tmp_path / "pruned.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"pruned\.safetensors is damaged"):
        load_pruned(tmp_path)
