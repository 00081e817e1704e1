"""The version is written once, and the changelog, the build and a tag agree with it."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxprune
from fxprune.cli.main import app

ROOT = Path(__file__).parents[2]


def test_the_newest_heading_of_the_changelog_and_the_command_line_say_it() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == fxprune.__version__ and len(set(headings)) == len(headings)
    assert CliRunner().invoke(app, ["--version"]).output == f"fxprune {fxprune.__version__}\n"


def test_what_is_built_bears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_meta = pytest.importorskip("setuptools.build_meta")
    for name in ("pyproject.toml", "README.md", "LICENSE", "fxprune/__init__.py", "fxprune/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)  # no clone here, so no tag: the number comes from the source
    with tarfile.open(tmp_path / build_meta.build_sdist(str(tmp_path))) as packed:
        info = packed.extractfile(f"fxprune-{fxprune.__version__}/PKG-INFO")
        assert info is not None and f"\nVersion: {fxprune.__version__}\n" in info.read().decode()


def test_a_tag_of_this_commit_is_its_version() -> None:
    asked = ["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"]
    tags = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert set(tags) <= {f"v{fxprune.__version__}"}
