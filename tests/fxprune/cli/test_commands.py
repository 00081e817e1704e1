"""The commands around a search: netadapt, resume, rounds, restore and report; what they print, keep and refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli.jobs import Job, functions_of, load_data
from fxprune.cli.main import app
from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import SourceError

PROJECT = """
import os, signal, time
import torch
from torch import nn
import fxprune

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()

def batches():
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,))) for _ in range(3)]

def loaders():
    return batches(), batches()

def images():
    return [inputs for inputs, _ in batches()]

def slow(model, steps):
    fxprune.FineTune(batches(), lr=0.01)(model, steps)
    time.sleep(float(os.environ.get("PAUSE", 0)))

def functions():
    return {"train": slow, "evaluate": fxprune.Accuracy(batches())}

def context():
    return fxprune.DLContext(
        batches(), val_loader=batches(), criterion=nn.CrossEntropyLoss(),
        train_func=lambda model, own: fxprune.data.train_one_epoch(model, own), validate_func=fxprune.data.validate,
        optimizer=torch.optim.SGD(made.parameters(), 0.1),
    )

made = net()

def interrupted():
    def stop(model, steps):
        signal.raise_signal(signal.SIGINT)
    return stop, fxprune.Accuracy(batches())

nothing = 7
"""

CONFIG = """\
budget_ratio: 0.6
budget_reduce_rate_init: 0.2
netadapt_max_iter: 2
netadapt_lr: 0.01
netadapt_dir: search
model: own_project:net
data: own_project:functions
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Call the command in a folder that holds `own_project.py` and `config.yml`, on a wide screen."""
    (tmp_path / "own_project.py").write_text(PROJECT)
    (tmp_path / "config.yml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, "own_project", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


SHAPE = ("--input", "1,3,8,8")


def test_help_teaches(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("--help").output
    assert all(name in shown for name in ("netadapt", "resume", "rounds", "restore", "report", "analyze", "demo"))
    shown = run("netadapt", "--help").output
    assert "budget_ratio: 0.5" in shown and "Exit codes" in shown and "torchvision:NAME" in shown
    assert "--round" in run("restore", "--help").output


@pytest.mark.parametrize("named", ["train", "own_project:images"])
def test_calibration_data_are_named_in_the_configuration(named: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = CONFIG.replace("data: own_project:functions", "data: own_project:loaders") + f"calibration: {named}\n"
    (tmp_path / "config.yml").write_text(text + "refine: 1\n")
    done = run("netadapt", "config.yml", *SHAPE, "--quiet")
    assert done.exit_code == 0, done.output
    assert "divergence from the dense outputs" in json.loads(run("rounds", "search", "--json").output)[1]["reason"]
    assert (tmp_path / "search" / "statistics.safetensors").is_file()
    again = run("resume", "search", "--trust", "--quiet")
    assert again.exit_code == 0, again.output
    (tmp_path / "wrong.yml").write_text(text.replace("loaders", "functions").replace(named, "train"))
    refused = run("netadapt", "wrong.yml", *SHAPE, "--workdir", "other", "--quiet")
    assert refused.exit_code == 2 and "own_project:functions gives none" in refused.output


def test_a_search_from_start_to_report(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("netadapt", "config.yml", *SHAPE)
    assert done.exit_code == 0, done.output
    assert "the budget is met" in done.output and "fxprune restore search" in done.output
    assert "round 1: " in done.output and "s left" in done.output  # no terminal: a line a round

    listed = run("rounds", "search")
    assert listed.exit_code == 0 and "finished: the budget is met" in listed.output
    data = json.loads(run("rounds", "search", "--json").output)
    assert [entry["round"] for entry in data] == list(range(len(data))) and data[-1]["returned"]
    assert data[-1]["achieved"]["flops"] <= 0.6 * data[0]["achieved"]["flops"]

    for number in (0, 1, len(data) - 1):
        trust = [] if number else ["--trust"]  # the unpruned weights are not kept, so the model is built
        written = run("restore", "search", "--round", number, "-o", f"{number}.safetensors", *trust)
        assert written.exit_code == 0 and f"round {number}:" in written.output, written.output
        import own_project  # type: ignore[import-not-found]

        network = fxprune.load(own_project.net(), f"{number}.safetensors")
        assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
        if number:
            kept = load_file(tmp_path / "search" / f"round-{number:04d}" / "weights.safetensors")
            assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())
    assert run("restore", "search", "-o", "net.py", "--trust").exit_code == 0 and (tmp_path / "net.py").is_file()
    assert f"round {len(data) - 1}:" in run("restore", "search", "-o", "chosen.safetensors").output

    page = run("report", "search", "-o", "page.html")
    assert page.exit_code == 0 and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")

    again = run("netadapt", "config.yml", *SHAPE)
    assert again.exit_code == 0 and "training 0.0" in again.output


def test_an_interrupted_search_is_resumed_in_the_same_network(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Killed by SIGKILL in the middle of a round, in a process of its own, then resumed here."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fxprune", "netadapt", "config.yml", *SHAPE, "--quiet"],
        env={**os.environ, "PAUSE": "0.6", "PYTHONPATH": os.pathsep.join([str(Path(fxprune.__file__).parents[1])])},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("search/round-0001/candidate-*.json")) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    listed = run("rounds", "search")
    assert listed.exit_code == 0 and "in progress or interrupted" in listed.output, listed.output
    assert run("report", "search").exit_code == 0
    resumed = run("resume", "search", "--quiet", "--config", "config.yml")
    assert resumed.exit_code == 0 and "s left" not in resumed.output, resumed.output
    whole = run("netadapt", "config.yml", *SHAPE, "--workdir", "whole")
    assert whole.exit_code == 0
    names = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("round-*/weights.safetensors")
    )
    assert names
    for name in names:
        assert (tmp_path / "search" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_says_how_to_go_on(run) -> None:  # type: ignore[no-untyped-def]
    stopped = run("netadapt", "config.yml", *SHAPE, "--data", "own_project:interrupted")
    assert stopped.exit_code == 130 and "fxprune resume" in stopped.output


def test_a_search_above_its_budget_exits_with_3(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "short.yml").write_text(
        CONFIG.replace("budget_ratio: 0.6", "budget_ratio: 0.3\nnetadapt_max_rounds: 1")
    )
    ended = run("netadapt", "short.yml", *SHAPE)
    assert ended.exit_code == 3 and "netadapt_max_rounds=1 is reached" in ended.output


@pytest.mark.parametrize("data", ["own_project:loaders", "own_project:functions", "cifar"])
def test_data_in_every_form(run, tmp_path: Path, data: str, data_dir: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    if data == "cifar":
        from image_files import first_pictures, write_cifar
        from torchvision.datasets import CIFAR10

        write_cifar(tmp_path, first_pictures(data_dir))
        monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
        train, selection = load_data(f"cifar10:{tmp_path}", 32)
        assert next(iter(train))[0].shape[2:] == (32, 32) and len(selection.dataset) == 10
        return
    done = run("netadapt", "config.yml", *SHAPE, "--data", data, "--seed", 5)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "search" / "command.json").read_text())["payload"]["data"] == data


def test_a_context_is_data_too(run) -> None:  # type: ignore[no-untyped-def]
    import importlib

    sys.path.insert(0, os.getcwd())
    project = importlib.import_module("own_project")
    train, evaluate = functions_of(project.context(), "own_project:context", project.made, NetAdaptConfig())
    assert train is not None and evaluate is not None
    train(project.made, 2)
    assert 0 <= evaluate(project.made) <= 100


def test_without_data_the_search_is_data_free(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "free.yml").write_text("budget_ratio: 0.6\nbudget_reduce_rate_init: 0.2\n")
    done = run("netadapt", "free.yml", *SHAPE, "--model", "own_project:net", "--workdir", "free")
    assert done.exit_code == 0 and "no data" in done.output, done.output


def test_weights_of_a_file(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "right.safetensors")
    (tmp_path / "linear.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2)\n")
    built = Job("linear:net", weights=str(tmp_path / "right.safetensors")).build("cpu")
    assert torch.equal(built.weight, model.weight)  # type: ignore[arg-type]
    save_file({"weight": torch.zeros(4, 4)}, tmp_path / "wrong.safetensors")
    for name, said in (("wrong.safetensors", "not those of this model"), ("none.safetensors", "no such file"),
                       ("right.pth", "read from .safetensors")):  # fmt: skip
        with pytest.raises(SourceError, match=said):
            Job("linear:net", weights=str(tmp_path / name)).build("cpu")


def test_random_weights_of_torchvision_are_the_same_again(caplog) -> None:  # type: ignore[no-untyped-def]
    first, second = (Job("torchvision:squeezenet1_1", seed=3).build("cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert "random weights" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("netadapt", "nowhere.yml"), 2, "nowhere.yml"),
        (("netadapt", "config.yml", "--model", "own_project:nat"), 2, "did you mean net"),
        (
            ("netadapt", "config.yml", *SHAPE, "--data", "own_project:nothing"),
            2,
            "gives int; expected (train, evaluate)",
        ),
        (("netadapt", "config.yml", *SHAPE, "--data", "nonsense"), 2, "is no data"),
        (("netadapt", "config.yml", *SHAPE, "--data", "cifar10:nowhere"), 1, "no data in nowhere"),
        (("netadapt", "config.yml", "--input", "1,4,8,8"), 1, "example inputs"),
        (("netadapt", "faulty.yml"), 1, "faulty.yml, line 2: unknown key 'netadapt_lrr'; did you mean 'netadapt_lr'?"),
        (("netadapt", "unnamed.yml"), 2, "names no model"),
        (("rounds", "nowhere"), 1, "there is no run here"),
        (("resume", "nowhere"), 1, "no search was started here from the command line"),
        (("report", "nowhere"), 1, "there is no run here"),
        (("restore", "nowhere", "-o", "x.safetensors"), 1, "there is no run here"),
        (("restore", "nowhere"), 2, "--out"),
    ],
)
def test_what_is_wrong_is_named(run, tmp_path: Path, arguments: tuple, code: int, said: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "faulty.yml").write_text("budget_ratio: 0.5\nnetadapt_lrr: 0.1\n")
    (tmp_path / "unnamed.yml").write_text("budget_ratio: 0.5\n")
    shown = run(*arguments)
    assert shown.exit_code == code and said in " ".join(shown.output.split()), shown.output
    assert isinstance(shown.exception, SystemExit)


def test_another_search_in_the_same_folder_is_refused(run) -> None:  # type: ignore[no-untyped-def]
    assert run("netadapt", "config.yml", *SHAPE).exit_code == 0
    refused = run("netadapt", "config.yml", "--input", "1,3,10,10")
    assert refused.exit_code == 1 and "('1,3,8,8',) there, ('1,3,10,10',) here" in refused.output
    assert run("resume", "search", "--trust").exit_code == 0
    assert "no round 99" in run("restore", "search", "--round", 99, "-o", "x.safetensors").output
    other = run("restore", "search", "-o", "x.safetensors", "--model", "torchvision:alexnet", *SHAPE)
    assert other.exit_code == 1


def test_damaged_names_of_a_search_are_written_again_by_the_same_command(run, tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    assert run("netadapt", "config.yml", *SHAPE).exit_code == 0
    names = tmp_path / "search" / "command.json"
    whole = names.read_bytes()
    names.write_bytes(whole[:20])
    for arguments in (("resume", "search", "--trust"), ("restore", "search", "-o", "x.pt2", "--trust")):
        refused = run(*arguments)
        assert refused.exit_code == 1 and "`fxprune netadapt CONFIG.yml` writes it again" in refused.output
    assert run("restore", "search", "-o", "x.safetensors", "--model", "own_project:net").exit_code == 0
    again = run("netadapt", "config.yml", *SHAPE)
    assert again.exit_code == 0 and "training 0.0" in again.output
    assert "command.json: the file is truncated or altered" in caplog.text
    assert names.read_bytes() == whole and run("resume", "search", "--trust").exit_code == 0


def test_a_search_of_a_script_is_restored_with_the_model_named(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(tmp_path))
    import own_project  # type: ignore[import-not-found]

    fxprune.netadapt(own_project.net(), 0.6, example_inputs=torch.zeros(1, 3, 8, 8), workdir="scripted", progress=False,
                     config={"budget_reduce_rate_init": 0.2})  # fmt: skip
    asked = run("restore", "scripted", "-o", "x.pt2")
    assert asked.exit_code == 1 and "--model" in asked.output
    done = run("restore", "scripted", "-o", "x.safetensors", "--model", "own_project:net")
    assert done.exit_code == 0, done.output
    alone = run("restore", "scripted", "-o", "y.safetensors")
    assert alone.exit_code == 0 and (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    whole, again = (fxprune.load(own_project.net(), tmp_path / f"{name}.safetensors") for name in "xy")
    assert torch.equal(whole(torch.ones(1, 3, 8, 8)), again(torch.ones(1, 3, 8, 8)))
