"""What people type first: each is answered in at most five lines that say what to do, none with a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxprune.cli.main import app

NETS = """
import torch
from torch import nn

def small(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))

def needs_width(width):
    return small(width)

def on_meta():
    with torch.device("meta"):
        return small()

def broken():
    raise RuntimeError("the weights are on another machine")

def parallel():
    return nn.DataParallel(small())

def scripted():
    return torch.jit.script(nn.Linear(3, 2))

def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))

def quantised():
    from torch.ao.quantization import quantize_dynamic
    return quantize_dynamic(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), {nn.Linear}, dtype=torch.qint8)

def batches():
    return [torch.randn(4, 3, 8, 8)]

def none_at_all():
    return None

def dataset():
    found = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.zeros(16, dtype=torch.long))
    return found, found

def one_argument():
    return (lambda model: None), (lambda model: 0.0)

def no_score():
    return (lambda model, steps: None), (lambda model: None)
"""
GOOD = "budget_ratio: 0.5\nmodel: first_nets:small\ninput: 1,3,8,8\nnetadapt_dir: kept\nnetadapt_min_feature_size: 2\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    (tmp_path / "first_nets.py").write_text(NETS)
    (tmp_path / "no_syntax.py").write_text("\ndef small(:\n")
    (tmp_path / "raises.py").write_text("raise ValueError('not today')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "first_nets", raising=False)

    def call(*arguments: str, config: str | None = None):  # type: ignore[no-untyped-def]
        if config is not None:
            (tmp_path / "config.yml").write_text(config)
        return CliRunner().invoke(app, list(arguments))

    yield call
    sys.modules.pop("first_nets", None)


def answered(shown, said: str) -> None:  # type: ignore[no-untyped-def]
    assert shown.exception is None or isinstance(shown.exception, SystemExit), repr(shown.exception)
    assert shown.exit_code in (1, 2), shown.output
    lines = [line for line in shown.output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("fxprune: ")]
    assert len(told) == 1 and len(lines[lines.index(told[0]) :]) <= 5 and len(lines) <= 8, shown.output
    assert said in " ".join(shown.output.split()), shown.output
    assert "Traceback" not in shown.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet18",), "write torchvision:NAME"),
        (("torchvision:resnet19",), "did you mean resnet18"),
        (("timm:no_such_model_at_all",), "timm"),
        (("hf:no/such/folder",), "hf:no/such/folder"),
        (("first_net:small",), "no module 'first_net'"),
        (("first_nets:smal",), "did you mean small"),
        (("first_nets.py",), "a file of code, without the function in it"),
        (
            ("weights.pt",),
            "a file of weights (load them in that function), and a model is made by code",
        ),
        (("net.pt2",), "name it as path/to/file.py:function"),
        (("net.onnx",), "an exported network"),
        (("first_net.py:small",), "there is no such file"),
        (("first_nets:small",), "nothing says what the model takes. Pass its shape, --input 1,3,32,32"),
        (("first_nets:needs_width", "--input", "1,3,8,8"), "missing a required argument: 'width'"),
        (("first_nets:small(width)", "--input", "1,3,8,8"), "arguments are written as numbers"),
        (("first_nets:small", "--input", "1,1,8,8"), "3 channels"),
        (("first_nets:small", "--input", "3;8;8"), "expected sizes such as 1,3,224,224"),
        (("first_nets:small", "--input", "1,3,9999999,9999999"), "there is no memory for a tensor of this size"),
        (("first_nets:small", "--input", "99999999999999999999,3,8,8"), "there is no memory for a tensor of this size"),
        (("first_nets:none_at_all", "--input", "1,3,8,8"), "gives NoneType, expected a torch.nn.Module"),
        (("first_nets:lazy", "--input", "1,3"), "has no weights yet"),
        (("first_nets:broken", "--input", "1,3"), "the weights are on another machine"),
        (("first_nets:quantised", "--input", "1,8"), "is quantised"),
        (("first_nets:small", "--input", "3,9,9"), "does not run on the example inputs: RuntimeError: mat1 and mat2"),
        (("first_nets:small", "--input", "3,9,9"), "Here their shapes are --input 1,3,224,224"),
        (("no_syntax:small",), "no_syntax: importing it raised SyntaxError"),
        (("no_syntax.py:small",), "no_syntax.py, line 2"),
        (("raises:small",), "importing it raised ValueError: not today (raises.py, line 1)"),
    ],
)
def test_analyze(run, arguments: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    answered(run("analyze", *arguments), said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("budget_ratio: 0.5\n", "names no model"),
        (GOOD.replace("budget_ratio: 0.5\n", ""), "no budget"),
        (GOOD.replace("0.5", "50"), "expected a number more than 0 and at most 1"),
        (GOOD.replace("budget_ratio", "budget_ration"), "did you mean 'budget_ratio'?"),
        (GOOD + "latency: {thread: 1}\n", "did you mean 'threads'?"),
        (GOOD + "data: first_nets:one_argument\n", "train"),
        (GOOD + "data: first_nets:no_score\n", "evaluate"),
        (GOOD + "data: first_nets:none_at_all\n", "expected (train, evaluate)"),
        (GOOD + "data: cifar10:no_such_folder\n", "no_such_folder"),
        (GOOD + "calibration: train\n", "gives none"),
        (GOOD.replace(":small", ":on_meta"), "0.weight is on the meta device, and a workdir keeps the weights"),
        (GOOD + "calibration: first_nets:none_at_all\n", "gives None; expected batches"),
        (GOOD + "data: first_nets:dataset\n", "DataLoader(dataset"),
        (GOOD + "workers: 0\n", "at least 1"),
        (GOOD + "keep_rounds: 0\n", "at least 1"),
        (GOOD + "\tseed: 1\n", "line 6"),
        (GOOD + "seed: 1\nseed: 2\n", "again, after line 6"),
        (GOOD + "budget: 100\n", "keep one of them"),
        (GOOD + "strategy: gready\n", "there are allocate, knapsack"),
        (GOOD + "same_width: [nothing]\n", "the groups are 0, 2"),
        (GOOD + "budget_type: latency\nlatency: {backend: tflite}\n", "there are compile, eager"),
        (GOOD.replace("0.5", "50%"), "could not convert"),
        ("- a\n- b\n", "got a list"),
        (GOOD.replace("0.5", "0.0001"), "nearest feasible"),
        (GOOD + "exclude: [nothing_like_it]\n", "matches no layer or group"),
        (GOOD.replace("kept", "/proc/none"), "/proc/none"),
        (GOOD.replace(":small", ":scripted").replace("1,3,8,8", "1,3"), "pass the nn.Module that it was made from"),
        ("budget_ratio: [\n", "not valid YAML"),
    ],
)
def test_netadapt(run, config: str, said: str) -> None:  # type: ignore[no-untyped-def]
    answered(run("netadapt", "config.yml", "--quiet", config=config), said)


def test_other_commands(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answered(run("rounds", "no_such_folder"), "there is no run here")
    answered(run("resume", str(tmp_path)), "command.json")
    answered(run("report", "no_such_folder"), "there is no run here")
    answered(run("restore", str(tmp_path), "-o", "net.safetensors"), "there is no run here")
    (tmp_path / "a_file").write_text("mine")
    answered(run("rounds", "a_file"), "is a file; expected the workdir of a search")
    answered(run("restore", str(tmp_path), "-o", "net.h5"), "unknown suffix '.h5'")
    answered(run("analyze", "first_nets:small", "--input", "1,3,8,8", "--html", "a_file"), "no report of fxprune")
    answered(run("latency", "build", "first_nets:small", "--input", "1,3,8,8", "--backend", "trt"), "there are compile")
    answered(run("latency", "show", "missing.json"), "build it anew")
    (tmp_path / "net.safetensors").write_text("not a file of fxprune")
    answered(run("check", "net.safetensors"), "net.json does not exist")


def test_what_works_at_once(run) -> None:  # type: ignore[no-untyped-def]
    assert run("analyze", "first_nets:parallel", "--input", "1,3,8,8").exit_code == 0
    assert run("analyze", "first_nets.py:small(width=6)", "--input", "1x3x8x8").exit_code == 0
    done = run(
        "netadapt",
        "config.yml",
        "--quiet",
        config=GOOD.replace("input: 1,3,8,8\n", "calibration: first_nets:batches\n"),
    )
    assert done.exit_code == 0 and "(from the first batch of the data)" in done.output, done.output
