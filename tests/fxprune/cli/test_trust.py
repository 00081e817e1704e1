"""The folder of a search may come from anyone: it is read as data, and runs nothing that the user did not name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import fxprune
from fxprune.cli.main import app
from fxprune.cli.refused_imports import nothing_from
from fxprune.io import storage

CODE = """
import pathlib, torch
pathlib.Path({mark!r}).write_text("imported")
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3)).eval()
def data():
    return None, lambda model: 0.0
def loaders():
    batches = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, 6, 6, dtype=torch.long))]
    return batches, batches
"""
CONFIG = "budget_ratio: 0.6\nbudget_reduce_rate_init: 0.3\nnetadapt_max_iter: 1\nmodel: {model}\n{more}"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was started from the command line, with the code beside it."""
    place = tmp_path_factory.mktemp("searched")
    (place / "honest_code.py").write_text(CODE.format(mark=str(place / "mark")))
    (place / "config.yml").write_text(CONFIG.format(model="honest_code:net", more=""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        done = invoke("netadapt", "config.yml", "--workdir", "search", "--input", "1,3,8,8", "--quiet")
    assert done.exit_code == 0, done.output
    sys.modules.pop("honest_code", None)
    return place / "search"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def foreign(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as if it came from elsewhere, in a folder where the command is called."""
    shutil.copytree(searched, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "300")
    yield tmp_path / "run"  # type: ignore[misc]
    for name in ("hostile", "helper", "run"):
        sys.modules.pop(name, None)


def name_in(folder: Path, **changes: Any) -> None:
    names = storage.read_json(folder / "command.json")
    assert names is not None
    storage.write_json(folder / "command.json", {**names, **changes})


def plant(place: Path, name: str = "hostile") -> Path:
    """Code that leaves a mark where it is imported."""
    mark = place / "mark"
    place.mkdir(exist_ok=True)
    (place / f"{name}.py").write_text(CODE.format(mark=str(mark)))
    return mark


def test_data_is_read_without_importing(foreign: Path) -> None:
    mark = plant(foreign.parent)
    name_in(foreign, model="hostile:net", data="hostile:data")
    for arguments in (
        ("rounds", "run"), ("rounds", "run", "--json"), ("report", "run"), ("restore", "run", "-o", "net.safetensors"),
        ("restore", "run", "--round", 1, "-o", "first.safetensors"), ("check", "net.safetensors", "net.json"),
    ):  # fmt: skip
        done = invoke(*arguments)
        assert done.exit_code == 0, done.output
    assert not mark.exists()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    assert fxprune.load(model, "net.safetensors")(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)


FORMS = [
    ("resume", "run"),
    ("restore", "run", "-o", "net.pt2"),
    ("restore", "run", "--round", 0, "-o", "n.safetensors"),
]


@pytest.mark.parametrize("arguments", FORMS)
def test_code_is_shown_and_needs_trust(foreign: Path, arguments: tuple[Any, ...]) -> None:
    mark = plant(foreign.parent)
    name_in(foreign, model="hostile:net")
    refused = invoke(*arguments)
    assert refused.exit_code == 1 and isinstance(refused.exception, SystemExit)
    assert "names code to run: the model hostile:net" in refused.output and "--trust" in refused.output
    assert not mark.exists() and "hostile" not in sys.modules
    trusted = invoke(*arguments, "--trust")
    assert trusted.exit_code == 0 and "run: running the model hostile:net" in trusted.output, trusted.output
    assert mark.exists()


@pytest.mark.parametrize("arguments", FORMS)
def test_the_users_own_configuration_is_the_users_word(foreign: Path, arguments: tuple[Any, ...]) -> None:
    mark = plant(foreign.parent)
    name_in(foreign, model="hostile:net")
    (foreign.parent / "other.yml").write_text(CONFIG.format(model="other:net", more=""))
    refused = invoke(*arguments, "--config", "other.yml")
    assert refused.exit_code == 1 and "names code to run: the model hostile:net" in refused.output
    assert not mark.exists()
    (foreign.parent / "own.yml").write_text(CONFIG.format(model="hostile:net", more=""))
    assert invoke(*arguments, "--config", "own.yml").exit_code == 0


def test_data_is_code_too_and_only_for_a_search(foreign: Path) -> None:
    mark = plant(foreign.parent)
    name_in(foreign, model="torchvision:alexnet", data="hostile:data")
    refused = invoke("resume", "run")
    assert "names code to run: the data hostile:data" in refused.output and not mark.exists()
    name_in(foreign, model="torchvision:squeezenet1_1", data=None, inputs=["1,3,64,64"])
    asked = invoke("resume", "run")  # no code of anyone's; and it is another network's folder
    assert "names code to run" not in asked.output and "the run that is kept here is another one" in asked.output


def test_calibration_data_are_code_too(foreign: Path) -> None:
    record = storage.read_json(foreign / "run.json")
    assert record is not None
    record["details"]["config"]["calibration"] = "hostile:batches"
    storage.write_json(foreign / "run.json", record)
    mark = plant(foreign.parent)
    name_in(foreign, model="torchvision:alexnet")
    refused = invoke("resume", "run")
    assert "names code to run: the calibration hostile:batches" in refused.output and not mark.exists()


def test_a_cluster_that_a_folder_names_needs_trust(foreign: Path) -> None:
    record = storage.read_json(foreign / "run.json")
    assert record is not None
    record["details"]["config"].update(workers="ray", ray={"address": "ray://elsewhere:10001"})
    storage.write_json(foreign / "run.json", record)
    name_in(foreign, model="torchvision:alexnet")
    refused = invoke("resume", "run")
    assert refused.exit_code == 1 and "the Ray cluster at ray://elsewhere:10001" in refused.output


@pytest.mark.parametrize("arguments", FORMS)
@pytest.mark.parametrize("where", ["run", "."])
def test_nothing_inside_the_folder_is_imported(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], where: str
) -> None:
    """Neither as `run.hostile` nor where the command is called in the folder itself, not even with --trust."""
    mark = plant(foreign)
    name_in(foreign, model="run.hostile:net" if where == "." else "hostile:net")
    monkeypatch.chdir(where)
    arguments = (arguments[0], "." if where == "run" else "run", *arguments[2:])
    for more in ((), ("--trust",), ("--model", "hostile:net") if arguments[0] == "restore" else ("--trust",)):
        refused = invoke(*arguments, *more)
        assert refused.exit_code in (1, 2) and isinstance(refused.exception, SystemExit), refused.output
        assert not mark.exists()


def test_nor_by_what_is_trusted(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted code asks for a module that lies only in the folder, which is on the path."""
    mark = plant(foreign, "helper")
    (foreign.parent / "hostile.py").write_text("import helper\n" + CODE.format(mark=str(foreign.parent / "own")))
    name_in(foreign, model="hostile:net")
    monkeypatch.syspath_prepend(str(foreign))
    refused = invoke("restore", "run", "-o", "net.pt2", "--trust")
    assert refused.exit_code == 1 and "in the folder of the search; code is never taken from there" in refused.output
    assert not mark.exists()
    before = list(sys.meta_path)
    with nothing_from(foreign):
        assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before


def test_restore_and_report_leave_the_users_files(foreign: Path) -> None:
    for name, arguments in (
        ("net.safetensors", ("restore", "run", "-o", "net.safetensors")),
        ("net.json", ("restore", "run", "-o", "net.safetensors")),
        ("page.html", ("report", "run", "-o", "page.html")),
    ):
        (foreign.parent / name).write_text("my own")
        refused = invoke(*arguments)
        assert refused.exit_code == 1 and "--overwrite" in refused.output and name in refused.output
        assert (foreign.parent / name).read_text() == "my own"
        assert invoke(*arguments, "--overwrite").exit_code == 0
        assert invoke(*arguments).exit_code == 0, "our own may be written again"
        (foreign.parent / name).unlink()


ESCAPE = "\x1b[2J\x1b]0;owned\x07"


def test_escapes_of_a_folder_are_shown(foreign: Path) -> None:
    """In every record of a folder, in its own name, and in names on the command line."""
    record = storage.read_json(foreign / "run.json")
    assert record is not None
    record["details"]["class"] = f"Net{ESCAPE}[red]"
    storage.write_json(foreign / "run.json", record)
    result = storage.read_json(foreign / "result.json")
    assert result is not None
    storage.write_json(foreign / "result.json", {**result, "stopped": f"met{ESCAPE}[/bold]\u202e"})
    name_in(foreign, model=f"hostile{ESCAPE}:net")
    strange = foreign.parent / f"r{ESCAPE}"
    shutil.copytree(foreign, strange)
    for folder in (foreign, strange):
        for arguments in (
            ("rounds", folder), ("resume", folder), ("restore", folder, "-o", f"{ESCAPE}.onnx"), ("report", folder),
            ("analyze", f"x{ESCAPE}:y"), ("check", strange / "run.json"), ("rounds", f"{folder}{ESCAPE}"),
        ):  # fmt: skip
            done = invoke(*arguments)
            assert done.exception is None or isinstance(done.exception, SystemExit), done.output
            assert not set(done.output) & set("\x1b\x07\u202e"), arguments
    assert r"\x1b[2J" in invoke("rounds", foreign).output
    page = (foreign / "report.html").read_text(encoding="utf-8")
    assert not set(page) & set("\x1b\x07\u202e") and r"\x1b[2J" in page


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("result.json", lambda r: r.pop("certificate")),
        ("result.json", lambda r: r.update(accepted="last")),
        ("result.json", lambda r: r.update(accepted=-3)),
        ("result.json", lambda r: r.update(met="yes")),
        ("round-0001/round.json", lambda r: r["round"].update(targets={})),
        ("round-0001/round.json", lambda r: r["round"].update(widths={})),
        ("round-0001/round.json", lambda r: r["round"].update(round=7)),
        ("run.json", lambda r: r["details"].update(start={})),
        ("run.json", lambda r: r["details"].update(limits={})),
        ("run.json", lambda r: r["details"].update(outline={"ties": {"a": "b"}})),
        ("run.json", lambda r: r["details"]["outline"].update(ties={"0.bias": "nothing"})),
        ("run.json", lambda r: r["details"].update(grids={"0": [1]})),
        ("run.json", lambda r: r["details"].update(config={"exclude": 7})),
        ("run.json", lambda r: r["details"].update(environment=3)),
        ("command.json", lambda r: r.update(inputs="1,3,8,8")),
        ("command.json", lambda r: r.update(code="import os")),
    ],
)
def test_records_that_somebody_made_are_refused_in_words(foreign: Path, name: str, change: Any) -> None:
    """Each with a checksum that fits."""
    record = storage.read_json(foreign / name)
    assert record is not None
    change(record)
    storage.write_json(foreign / name, record)
    for arguments in (
        ("rounds", "run"), ("rounds", "run", "--json"), ("report", "run"), ("resume", "run"),
        ("restore", "run", "-o", "net.safetensors", "--round", 1), ("restore", "run", "-o", "net.pt2"),
    ):  # fmt: skip
        done = invoke(*arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert done.exit_code in (0, 1, 2) and "Traceback" not in done.output
