"""What is shipped: the wheel and the sdist hold the packages, their type marker and nothing of the tests, and run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fxprune

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BUILD = "import sys; out = sys.argv[1]; from setuptools import build_meta as b; b.build_wheel(out); b.build_sdist(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the sdist of a copy of the tree: building leaves files where it is done."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    return out


def test_the_files_of_the_wheel_and_of_the_sdist(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert (
        wheel.name.startswith(f"fxprune-{fxprune.__version__}-") and sdist.stem == f"fxprune-{fxprune.__version__}.tar"
    )
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fxprune/py.typed", "passes/py.typed", "fxprune/cli/main.py"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fxprune", "passes"}
    for path in (*ROOT.glob("fxprune/**/*.py"), *ROOT.glob("passes/**/*.py")):
        assert str(path.relative_to(ROOT)) in names
    with tarfile.open(sdist) as packed:
        files = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "fxprune/py.typed"} <= files


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_runs_where_nothing_of_the_clone_is_near(built: Path, kind: str, tmp_path: Path) -> None:
    (file,) = built.glob(kind)
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(target), str(file)], check=True, capture_output=True)
    code = (
        f"import fxprune, passes, torch; from torch import nn; assert fxprune.__file__.startswith(r'{target}'); "
        "r = fxprune.netadapt(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), 0.6, "
        "example_inputs=torch.randn(1, 8), progress=False); print(r.met)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for arguments, said in (
        (["-c", code], "True"),
        (["-m", "fxprune", "--version"], f"fxprune {fxprune.__version__}\n"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr[-2000:]
