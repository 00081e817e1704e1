"""The command line: what it prints, what it refuses and with which exit code, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxprune.cli.analyze import analyze_model
from fxprune.cli.main import app
from fxprune.cli.sources import default_shape, example_inputs, load_model
from fxprune.errors import SourceError

OWN_MODEL = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))

built = small()
number = 7

def broken():
    raise RuntimeError("the weights are on another machine")

def looks_into_its_values():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branch()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Call the command in a folder that holds `own_model.py`, on a wide screen."""
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_help_names_every_command(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(command in shown.output for command in ("demo", "analyze"))
    assert "torchvision:NAME" in run("analyze", "--help").output


def test_analyze_prints_groups_reasons_and_shares(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("analyze", "own_model:small", "--input", "2,3,8,8")
    assert shown.exit_code == 0, shown.output
    assert "2 groups" in shown.output
    assert "prunable: 100.0% of" in shown.output
    assert "output" in shown.output  # the classifier's units are the model's output


def test_analyze_takes_a_built_model_and_counts_as_the_module_does(run) -> None:  # type: ignore[no-untyped-def]
    model = load_model("own_model:built") if run("analyze", "own_model:built", "--input", "2,3,8,8") else None
    assert isinstance(model, nn.Module)
    found = analyze_model(model, torch.zeros(2, 3, 8, 8))
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.macs == 2 * (36 * 6 * 27 + 16 * 8 * 54 + 8 * 16 * 5)
    assert [row.size for row in found.groups] == [6, 8]
    assert found.groups[0].macs_share == pytest.approx(1 - 2 * 8 * 16 * 5 / found.macs)
    assert found.groups[1].macs_share == pytest.approx(1 - 2 * 36 * 6 * 27 / found.macs)
    assert found.frozen and all(entry.reason and entry.nodes and entry.kept for entry in found.frozen)


def test_analyze_resnet18_of_torchvision(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("analyze", "torchvision:resnet18")
    assert shown.exit_code == 0, shown.output
    assert "layer4.1.conv1" in shown.output and "1,814,073,344 MACs" in shown.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "torchvision:NAME"),
        (("torchvision:resnet81",), "did you mean resnet18"),
        (("no_such_package.models:net",), "no module 'no_such_package'"),
        (("own_model:smal",), "did you mean small"),
        (("own_model:number",), "gives int, expected a torch.nn.Module"),
        (("own_model:small.9",), "no part '9'"),
        (("own_model:small", "--input", "2,x,8,8"), "expected sizes such as 1,3,224,224"),
        (("own_model:small", "--input", "0,3,8,8"), "at least 1"),
        (("own_model:small", "--input", "1,3:float31"), "no dtype 'float31'"),
        (("own_model:small", "--no-such-option"), "No such option"),
    ],
)
def test_what_is_written_wrong_is_named_and_exits_with_2(run, arguments: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    shown = run("analyze", *arguments)
    assert shown.exit_code == 2, shown.output
    assert said in shown.output


def test_a_model_that_does_not_fit_exits_with_1_and_no_traceback(run) -> None:  # type: ignore[no-untyped-def]
    for arguments in (("own_model:small", "--input", "2,4,8,8"), ("own_model:looks_into_its_values", "--input", "2,3")):
        shown = run("analyze", *arguments)
        assert shown.exit_code == 1, shown.output
        assert "fxprune: " in shown.output and isinstance(shown.exception, SystemExit)


def test_a_model_that_fails_while_it_is_built_keeps_its_own_error(run) -> None:  # type: ignore[no-untyped-def]
    failed = run("analyze", "own_model:broken").exception
    assert isinstance(failed, RuntimeError) and "on another machine" in str(failed)


def test_inputs_have_the_shape_and_dtype_that_are_written() -> None:
    image, tokens = example_inputs(["2,3,5,7", "2,16:int64"])
    assert image.shape == (2, 3, 5, 7) and image.dtype == torch.float32
    assert tokens.shape == (2, 16) and tokens.dtype == torch.int64
    assert default_shape("torchvision:r3d_18") == "1,3,16,224,224"
    assert default_shape("torchvision:resnet18") == default_shape("own_model:small") == "1,3,224,224"


def test_a_part_of_a_detector_needs_no_download() -> None:
    backbone = load_model("torchvision:ssdlite320_mobilenet_v3_large.backbone")
    assert isinstance(backbone, nn.Module)
    with pytest.raises(SourceError, match="no part 'backbon'"):
        load_model("torchvision:ssdlite320_mobilenet_v3_large.backbon")


def test_a_model_of_ones_own_may_import_torchvision(tmp_path: Path) -> None:
    (tmp_path / "own_vision.py").write_text(
        "from torch import nn\nfrom torchvision.ops import Conv2dNormActivation\n"
        "def small(): return nn.Sequential(Conv2dNormActivation(3, 8), nn.Conv2d(8, 4, 3))\n"
    )
    command = [sys.executable, "-m", "fxprune", "analyze", "own_vision:small", "--input", "2,3,8,8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "1 groups" in done.stdout, done.stderr[-2000:]


def test_starting_up_imports_nothing_heavy() -> None:
    script = """
import sys
import fxprune.cli
heavy = {"torch", "torchvision", "matplotlib", "onnx", "onnxruntime", "ray", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_module_and_console_script_are_one_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fxprune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: fxprune" in done.stdout
