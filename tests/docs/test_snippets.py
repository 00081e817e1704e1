"""Every snippet of the README and of docs/ runs as it stands, a page at a time, in an empty folder.

* python: run, after the page's earlier ones; one whose first line is `# name.py` is also written to that file.
* text after snippets: what the last of them prints (figures that differ by machine are compared by their place alone).
* yaml: must be a configuration; one whose first line is `# name.yml` is also written to that file.
* sh: lines that start with `fxprune ` are run; others (pip, git, ...) are not.
* `<!-- not run: why -->` before a snippet leaves it out.
* `<!-- needs: name, name -->`: the page runs where these packages are installed, with the slow tests; as they print of
  their own accord, what a snippet prints only has to end in the text.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"^<!-- needs: (.+) -->$", re.MULTILINE)
DIFFERS = re.compile(r"\d+\.\d+e[-+]\d+|\d+(\.\d+)? s\b|\d+\.\d+ ms\b|(analysis|verification) \d+\.\d+")


@dataclass(frozen=True)
class Snippet:
    kind: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name in the first line, as in `# train.py`."""
        found = re.match(r"# ([\w-]+\.(?:py|ya?ml))\n", self.text)
        return found[1] if found else None


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if not found[1]:
            yield Snippet(found[2], found[3], text[: found.start(3)].count("\n") + 1)


def needed(page: Path) -> list[str]:
    found = NEEDS.search(page.read_text(encoding="utf-8"))
    return found[1].split(", ") if found else []


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if needed(page) else [])
        for page in PAGES
    ],
)
def test_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = needed(page)
    for name in packages:
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before: set[str] = set(sys.modules)
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    try:
        for snippet in snippets(page):
            if snippet.file is not None:
                (tmp_path / snippet.file).write_text(snippet.text)
            if snippet.kind == "text" and printed is not None:
                expected, found = plain(snippet.text), plain(printed)
                found = found[-len(expected) :] if packages else found
                assert found == expected, f"{page.name}:{snippet.line}: the output is another one"
            elif snippet.kind in ("python", "yaml", "sh"):
                capsys.readouterr()
                printed = run(snippet, page, names) + capsys.readouterr().out
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def run(snippet: Snippet, page: Path, names: dict[str, object]) -> str:
    """Run a snippet; what the command line printed."""
    from fxprune.cli.main import app
    from fxprune.config.keys import NetAdaptConfig

    if snippet.kind == "python":
        exec(compile("\n" * (snippet.line - 1) + snippet.text, str(page), "exec"), names)
    elif snippet.kind == "yaml":
        Path("a-snippet.yml").write_text(snippet.text)
        NetAdaptConfig.from_yaml("a-snippet.yml")
    elif snippet.kind == "sh":
        said = ""
        for line in snippet.text.splitlines():
            if line.startswith("fxprune "):
                done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
                assert done.exit_code == 0, f"{page.name}:{snippet.line}: {line}: {done.output} {done.exception!r}"
                said += done.output
        return said
    return ""


def plain(text: str) -> list[str]:
    return [" ".join(DIFFERS.sub("#", line).split()) for line in text.strip().splitlines()]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target} is not there"


def test_a_wrong_output_and_a_wrong_snippet_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n<!-- not run: shown only -->\n```python\n1 / 0\n```\n```text\n2\n```\n")
    assert [snippet.kind for snippet in snippets(page)] == ["python", "text"]
    assert plain("1.2e-15 and 3.4 s") == plain("9.9e-16 and 1 s") != plain("none and 1 s")
