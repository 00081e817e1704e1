"""Wherever a path of the user's comes in, `~` is the home folder: no folder of that name is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxprune import DLContext, NetAdaptConfig, check_files, export, finetune, load, netadapt, train
from fxprune.cli.main import app
from fxprune.data.cifar import open_cifar
from fxprune.data.errors import DataError
from fxprune.data.imagenet import get_dataloader
from passes.arguments import user_path

X = torch.ones(2, 4)
NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user, who is elsewhere."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.chdir(here)
    return folder


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def test_paths_of_the_library(home: Path) -> None:
    result = netadapt(net(), 0.5, example_inputs=X, workdir="~/search", progress=False)
    export(result.model, X, "~/net.safetensors", plan=result.plan)
    load(net(), "~/net.safetensors"), check_files("~/net.safetensors")
    finetune("~/search", [(X, torch.zeros(2, dtype=torch.long))], model=net(), epochs=1, progress=False)
    train(net(), DLContext(max_epoch=1), lambda *_: 0, lambda *_: 1.0, work_dir="~/trained")
    NetAdaptConfig(budget_ratio=0.5).to_yaml("~/config.yml")
    assert NetAdaptConfig.from_yaml("~/config.yml").budget_ratio == 0.5
    made = {"search", "net.safetensors", "net.json", "trained", "config.yml"}
    assert {path.name for path in home.iterdir()} == made and not list(Path().iterdir())


def opened(read: Callable[[str], object]) -> str:
    with pytest.raises(DataError) as refused:
        read("~/data")
    return str(refused.value)


def test_paths_of_data(home: Path) -> None:
    assert str(home / "data") in opened(lambda path: open_cifar("CIFAR10", path, True, False, True))
    assert str(home / "data") in opened(get_dataloader)


def test_paths_of_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "user_paths_nets.py").write_text(NETS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_paths_nets", raising=False)
    (home / "config.yml").write_text("model: ~/user_paths_nets.py:net\nbudget_ratio: 0.5\nnetadapt_dir: ~/search\n")

    def call(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == 0, done.output
        return done

    call("netadapt", "~/config.yml", "--input", "2,4", "--quiet")
    call("netadapt", "~/config.yml", "--input", "2,4", "--workdir", "~/other", "--quiet")
    call("rounds", "~/search"), call("report", "~/search", "--out", "~/page.html")
    call("restore", "~/search", "--out", "~/net.safetensors"), call("check", "~/net.safetensors")
    call("init", "~/new.yml")
    made = {"search", "other", "net.safetensors", "net.json", "page.html", "new.yml", "fxprune-schema.json"}
    assert made <= {path.name for path in home.iterdir()} and not list(Path().iterdir())
    missing = CliRunner().invoke(app, ["netadapt", "~/nothing.yml"])
    assert missing.exit_code == 2 and "there is no such file" in " ".join(missing.output.split())


def test_names_that_are_none_of_a_home(home: Path) -> None:
    assert user_path("a/~/b") == Path("a/~/b") and user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
