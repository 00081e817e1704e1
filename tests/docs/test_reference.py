"""The reference pages are those of the code, and say something of every name."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow  # run before a release: the pages follow every docstring
@pytest.mark.parametrize("name", ["yaml.md", "api.md", "command-line.md", "rooms.md"])
def test_a_page_is_that_of_the_code(name: str) -> None:
    written = runpy.run_path(str(DOCS / "generate.py"))["PAGES"][name]()
    kept = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert kept == written, f"docs/reference/{name} is of older code; run `python docs/generate.py`"


def test_every_key_option_and_public_name_says_what_it_is() -> None:
    for page in ("yaml.md", "command-line.md", "rooms.md"):
        for line in (DOCS / "reference" / page).read_text(encoding="utf-8").splitlines():
            if line.startswith("| ") and not line.startswith("| key"):
                assert len(line.split("|")[2].strip()) > 3, f"{page}: {line}"
    api = (DOCS / "reference" / "api.md").read_text(encoding="utf-8").split("### ")[1:]
    assert all(len(entry.split("```")[2].strip()) > 10 for entry in api), "a public name without a docstring"
