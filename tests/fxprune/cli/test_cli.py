"""The command line: what it prints, what it refuses and with which exit code, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune import DLContext
from fxprune.cli.analyze import analyze_model
from fxprune.cli.inputs import example_inputs, first_batch, shapes_of
from fxprune.cli.main import app
from fxprune.cli.sources import load_model
from fxprune.errors import SourceError

OWN_MODEL = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5))

built = small()
number = 7

def broken():
    raise RuntimeError("the weights are on another machine")

class Torn:
    __iter__ = lambda self: broken()

torn = Torn()
pair = (torn, torn)

def of(folder):
    return folder
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


def test_help_keeps_brackets(run) -> None:  # type: ignore[no-untyped-def]
    def commands(group, *above: str):  # type: ignore[no-untyped-def]
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, *above, name)
            else:
                yield (*above, name), command

    seen = []
    for names, command in commands(typer.main.get_command(app)):
        shown = " ".join(run(*names, "--help").output.split())
        named = re.findall(r"\'fxprune\[\w+\]\'", command.help.replace("\\[", "["))
        assert all(name in shown for name in named), names
        assert not any("[" in (parameter.help or "") for parameter in command.params), names
        seen += named
    assert "'fxprune[report]'" in seen and "'fxprune[demo]'" in seen


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
    for arguments in (("own_model:small", "--input", "2,4,8,8"), ("own_model:small", "--input", "2,3:int64")):
        shown = run("analyze", *arguments)
        assert shown.exit_code == 1, shown.output
        assert "fxprune: " in shown.output and isinstance(shown.exception, SystemExit)


def test_a_model_that_fails_while_it_is_built_says_its_own_error_and_where(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("analyze", "own_model:broken")
    assert shown.exit_code == 2 and "broken() raised RuntimeError: the weights are on another machine" in shown.output
    assert "(own_model.py, line 11)" in shown.output and "Traceback" not in shown.output


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("data", "broken", "own_model:broken()"), ("calibration", "broken", "own_model:broken()"),
        ("data", "pair", "the first batch of the data"), ("calibration", "torn", "the first batch of the data"),
    ],
)  # fmt: skip
def test_data_that_fail_say_their_own_error_and_where(run, key: str, name: str, said: str) -> None:  # type: ignore[no-untyped-def]
    Path("c.yml").write_text(f"model: own_model:small\nbudget_ratio: 0.5\n{key}: own_model:{name}\n")
    shown = run("netadapt", "c.yml")
    assert shown.exit_code == 2 and f"{said} raised RuntimeError: the weights are on another machine" in shown.output
    assert "(own_model.py, line 11)" in shown.output and "Traceback" not in shown.output


def test_an_error_of_none_of_the_users_lines_names_none_of_ours(run) -> None:  # type: ignore[no-untyped-def]
    Path("c.yml").write_text("model: own_model:small\nbudget_ratio: 0.5\ndata: own_model:of\n")
    shown = run("netadapt", "c.yml")
    assert "own_model:of() raised TypeError: of() missing 1 required positional argument: 'folder'. " in shown.output


def test_a_reader_that_ends_early_ends_the_command_quietly(run) -> None:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-m", "fxprune", "analyze", "own_model:small", "--input", "1,3,8,8"]
    here = {**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=here) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b"" and program.wait(timeout=100) == 1


def test_codes_of_a_quantised_network_are_no_weights(run) -> None:  # type: ignore[no-untyped-def]
    Path("c.yml").write_text("model: own_model:small\nbudget_ratio: 0.5\n")
    weights = load_model("own_model:small").state_dict()
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, "w.safetensors")
    shown = run("netadapt", "c.yml", "--weights", "w.safetensors", "--input", "1,3,8,8")
    assert shown.exit_code == 2 and "0.bias: I8 in the checkpoint, float32 in the model" in shown.output
    save_file({name: tensor.to(torch.float16) for name, tensor in weights.items()}, "w.safetensors")
    assert run("netadapt", "c.yml", "--weights", "w.safetensors", "--input", "1,3,8,8").exit_code == 0


def test_inputs_have_the_shape_and_dtype_that_are_written() -> None:
    image, tokens = example_inputs(["2,3,5,7", "2,16:int64"])
    assert image.shape == (2, 3, 5, 7) and image.dtype == torch.float32
    assert tokens.shape == (2, 16) and tokens.dtype == torch.int64
    named = example_inputs(["input_ids=1,7:int64", "mask=1,7:bool"])
    assert [(name, tuple(t.shape), t.dtype) for name, t in named.items()] == [
        ("input_ids", (1, 7), torch.int64), ("mask", (1, 7), torch.bool),
    ]  # fmt: skip


def test_shapes_are_as_written_else_of_the_data_else_as_the_source_says() -> None:
    batches = [(torch.zeros(5, 3, 11, 13), torch.zeros(5))]
    assert shapes_of(["2,3"], "own_model:small", None, batches).texts == ("2,3",)
    for found in (batches, (batches, batches), {"train": batches}, DLContext(batches), [batches[0][0]]):
        assert shapes_of((), "own_model:small", None, found).texts == ("1,3,11,13",)
    assert first_batch([{"ids": torch.zeros(4, 7, dtype=torch.int64), "labels": torch.zeros(4)}]) == ("ids=1,7:int64",)
    assert first_batch((len, len)) is first_batch(None) is first_batch([]) is None
    assert shapes_of((), "torchvision:r3d_18").texts == ("1,3,16,224,224",)
    assert shapes_of((), "torchvision:resnet18").texts == ("1,3,224,224",)
    with pytest.raises(SourceError, match="nothing says what the model takes.*--input 1,3,32,32"):
        shapes_of((), "own_model:small")


def test_a_model_may_be_a_call_or_stand_in_a_file(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "with_width.py").write_text(
        "from torch import nn\ndef net(width, *, name='x'):\n"
        "    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))\n"
    )
    for spec in ("sub/with_width.py:net(7)", "sub/with_width.py:net(width=7, name='a.b:c')"):
        assert load_model(spec)[0].out_features == 7
    assert isinstance(load_model("sub/with_width.py:net(4).1"), nn.Linear)
    for spec, said in {
        "sub/with_width.py:net": "missing a required argument: 'width'; write its arguments in parentheses",
        "sub/with_width.py:net(os.getcwd())": "arguments are written as numbers",
        "sub/nothing.py:net": "there is no such file",
        "sub.py/x:net": "no module",
        "own_model:small)(": "expected a name, or a call",
    }.items():
        with pytest.raises(SourceError, match=re.escape(said)):
            load_model(spec)
    sys.modules.pop("with_width", None)


def test_version_json_and_names_at_80_columns(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert run("--version").output.strip() == f"fxprune {fxprune.__version__}"
    found = json.loads(run("analyze", "own_model:small", "--input", "2,3,8,8", "--json").stdout)
    assert found["inputs"] == ["2,3,8,8"] and [group["size"] for group in found["groups"]] == [6, 8]
    monkeypatch.setenv("COLUMNS", "60")
    name = "a_layer_with_a_name_of_some_length_that_must_stay_whole"
    Path("own_model.py").write_text(
        f"from torch import nn\ndef net(): return nn.ModuleDict({{}}) or nn.Sequential({name}=1)\n"
        if False
        else "from collections import OrderedDict as D\nfrom torch import nn\ndef net(): return nn.Sequential("
        f"D({name}=nn.Linear(3, 4), last=nn.Linear(4, 2)))\n"
    )
    sys.modules.pop("own_model", None)
    shown = run("analyze", "own_model:net", "--input", "2,3")
    assert name in shown.output and "inputs: 2,3 (as given)" in shown.output


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
    assert done.returncode == 0 and "1 group of" in done.stdout, done.stderr[-2000:]


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
