"""The picture of a network: every weight's bars say which group each part belongs to, and what stays and why."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from test_report import Page
from torch import nn
from typer.testing import CliRunner

from fxprune.cli.main import app
from fxprune.errors import JournalError
from fxprune.problem.inputs import analysed
from fxprune.report import write_analysis
from fxprune.report.network import network_page
from fxprune.report.style import HUES, group_colours


class Joined(nn.Module):
    """Two branches side by side, read by one convolution; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 18, 3)
        self.read, self.head = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self.head(self.read(x).mean((2, 3)))


def bars(page: str, layer: str) -> list[list[tuple[float, str]]]:
    """For each bar of a layer's weight its parts: width in percent, and what is said of it."""
    row = re.search(rf'<span class="name">{layer}\.weight</span>.*?</tr>', page)
    assert row is not None
    drawn = row[0].split('<span class="whole">')[1:]
    return [[(float(w), t) for w, t in re.findall(r'width:([\d.]+)%" title="([^"]*)"', bar)] for bar in drawn]


def test_parts_of_a_joined_dimension_belong_to_their_groups() -> None:
    given = analysed(Joined(), torch.randn(2, 3, 8, 8))
    page = network_page(given)
    numbered = enumerate(given.coupling.groups, 1)
    left, right = (f"group {n}, {g.name}: {g.size} units" for n, g in numbered if g.size in (6, 18))
    outputs, inputs = bars(page, "left")
    assert outputs == [(100, left)] and inputs == [(100, "stays: an input of the model keeps its shape")]
    assert bars(page, "read")[1] == [(25, left), (75, right)]
    assert bars(page, "head")[0] == [(100, "stays: an output of the model keeps its shape")]


def test_the_page_needs_nothing_else_and_is_the_same_again(tmp_path: Path) -> None:
    first = write_analysis(Joined(), torch.randn(2, 3, 8, 8), tmp_path / "a.html").read_text(encoding="utf-8")
    again = write_analysis(Joined(), torch.randn(2, 3, 8, 8), tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(first)
    assert first == again and not page.links and "script" not in page.tags
    assert "Joined: 3 groups" in page.text and "(2, 3, 8, 8) float32" in page.text
    assert first.count('role="img"') == first.count("aria-label=")


def test_names_from_a_model_are_escaped() -> None:
    network = nn.Sequential()
    network.add_module("<b>", nn.Linear(4, 6))
    network.add_module("last", nn.Linear(6, 2))
    assert "<b>.weight" not in network_page(analysed(network, torch.randn(3, 4)))


def test_a_file_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(JournalError, match="no report of fxprune"):
        write_analysis(Joined(), torch.randn(2, 3, 8, 8), tmp_path / "mine.html")
    write_analysis(Joined(), torch.randn(2, 3, 8, 8), tmp_path / "mine.html", overwrite=True)


def test_text_can_be_read_on_every_colour() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = re.findall(r"--fill: (#\w{6}); --on: (#\w{6})", group_colours(HUES))
    assert len(pairs) == len({fill for fill, _ in pairs}) == HUES
    for fill, text in pairs:  # WCAG 2.2, contrast of text: at least 4.5
        bright, dark = sorted([light(fill), light(text)], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, fill


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictured.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shown = CliRunner().invoke(app, ["analyze", "pictured:net", "--input", "3,4", "--html", "net.html"])
    assert shown.exit_code == 0 and "net.html" in shown.output
    assert "Sequential: 1 group of" in (tmp_path / "net.html").read_text(encoding="utf-8")
