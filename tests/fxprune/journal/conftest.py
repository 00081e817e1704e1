"""One search that nothing interrupts, for all tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest
from journaled_search import run

from fxprune import NetAdaptResult


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[NetAdaptResult, Path]:
    """An uninterrupted run, and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(folder), folder
