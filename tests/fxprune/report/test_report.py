"""The report: one page without scripts or links, true to the journal, for finished, running and damaged searches."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import Budget, netadapt
from fxprune.errors import JournalError
from fxprune.journal.read_run import read_run
from fxprune.report import page_of, write_report
from fxprune.report.html import amount, element, escape, seconds, table
from fxprune.resources.layer_costs import LayerCosts

VOID = {"meta", "br", "hr", "path", "use", "line", "rect"}


class Page(HTMLParser):
    """Reads a page: its texts, and whether every element that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs) -> None:  # type: ignore[no-untyped-def]
        self.tags.append(tag)
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:  # type: ignore[no-untyped-def]
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


class Net(nn.Module):
    """Two branches that are added, so that a group has two layers, and a name that HTML would misread."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 24, 3), nn.Conv2d(16, 24, 3)
        self.last = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.last((self.left(x) + self.right(x)).relu().mean((2, 3)))


IMAGE = torch.zeros(1, 3, 8, 8)
CONFIG = {"budget_reduce_rate_init": 0.15, "netadapt_max_iter": 1}


def train(model: nn.Module, steps: int) -> None:
    """A step that changes weights; on the narrowest of the joint groups it fails."""
    if model.get_submodule("left").out_channels == 20:
        raise RuntimeError("no <b>luck</b> & no data")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.99)


def evaluate(model: nn.Module) -> float:
    return 100 - 1e4 / sum(parameter.numel() for parameter in model.parameters())


def search(folder: Path, train):  # type: ignore[no-untyped-def]
    return netadapt(
        Net().eval(), 0.5, example_inputs=IMAGE, train=train, evaluate=evaluate, config=CONFIG, workdir=folder,
        progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("finished")
    budgets = [Budget("macs", ratio=0.6), Budget("params", ratio=0.8)]
    result = netadapt(Net().eval(), budgets, example_inputs=IMAGE, train=train, evaluate=evaluate, config=CONFIG,
                      workdir=folder, progress=False)  # fmt: skip
    return result, folder


def test_what_the_data_said_is_told(tmp_path: Path) -> None:
    images = torch.randn(60, *IMAGE.shape[1:])
    config = {**CONFIG, "strategy": "netadapt", "refine": 1}
    result = netadapt(
        Net().eval(), 0.6, example_inputs=IMAGE, calibration=[images], config=config, workdir=tmp_path, progress=False
    )
    text = Page(write_report(tmp_path).read_text()).text
    assert "By the data" in text and "What each group loses by its width" in text and "variance" in text.lower()
    assert "minus the divergence from the dense outputs" in text.lower()
    run = read_run(tmp_path)
    assert run.curves.keys() == result.curves.keys() and run.rounds[-1].repaired == result.repaired
    repaired = result.repaired
    assert repaired is not None and repaired.layers and repaired.kept <= repaired.sliced
    assert "divergence from the dense outputs" in result.summary() and "compensated" in result.summary()


def test_the_page_is_whole_and_needs_nothing_else(finished) -> None:  # type: ignore[no-untyped-def]
    _, folder = finished
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text()
    page = Page(text)
    assert not {"script", "link", "img"} & set(page.tags) and not page.links
    plain = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert not any(word in plain for word in ("http", "@import", "url('", 'url("'))
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 12  # two plots for each of two budgets and two of the layers, in two sizes
    assert "#0" not in re.sub(r"#glyph|url\(#", "", text.partition("<svg")[2])  # every stand-in has become a name
    assert write_report(folder, folder / "again.html").read_text() == text  # the same run, the same page


def test_points_and_plots_say_what_they_are(finished) -> None:  # type: ignore[no-untyped-def]
    result, folder = finished
    plots = re.findall(r"<svg.*?</svg>", page_of(read_run(folder)), re.DOTALL)
    assert all(re.match(r'<svg viewBox="[^"]+" role="img" aria-label="[^"]+">', plot) for plot in plots)
    scored = sum(c.score is not None for r in result.rounds for c in r.candidates)
    for plot in plots[:8]:  # the others are of layers
        titles = re.findall(r"<g><title>([^<]+)</title><use", plot)
        trade = "unpruned" in plot
        assert len(titles) == (scored + len(result.rounds) + 1 if trade else 2 * len(result.rounds) + 1)
        assert len(titles) == len(re.findall(r"<title>", plot))
    last = result.rounds[-1]
    share = 100 * last.achieved["macs"] / result.start["macs"]
    assert f"round {last.round}: {share:.1f} % of the MACs, score {last.score:.5g}" in plots[0]


def test_it_says_what_the_search_did(finished) -> None:  # type: ignore[no-untyped-def]
    result, folder = finished
    page = Page(page_of(read_run(folder)))
    assert "macs at 0.6 of the start" in page.text and "the budget is met" in page.text
    for record in result.rounds:
        assert record.reason in page.text and f"{record.score:.5g}" in page.text
    for name, before in result.original_widths.items():
        now = result.widths[name]
        assert name in page.text and (f"{before} → {now}" in page.text if now != before else str(before) in page.text)
    assert "with right" in page.text or "with left" in page.text
    assert "an output of the model keeps its shape" in page.text and "last.weight" in page.text
    assert f"{result.certificate.max_error:.1e}" in page.text and "embedded in the dense one" in page.text
    assert "training:" in page.text and "everything else" in page.text
    assert "netadapt_max_iter" in page.text


def test_each_layer_is_told_before_and_after(finished) -> None:  # type: ignore[no-untyped-def]
    result, folder = finished
    run = read_run(folder)
    assert run.layer_costs == result.layers and [layer.name for layer in run.layer_costs] == [
        "stem", "left", "right", "last",
    ]  # fmt: skip
    modules = dict(result.module.named_modules()), dict(result.dense.named_modules())
    for layer in run.layer_costs:
        after, before = (sum(p.numel() for p in named[layer.name].parameters()) for named in modules)
        assert (layer.params_before, layer.params_after) == (before, after)
    assert sum(layer.macs_after for layer in run.layer_costs) == result.achieved["macs"]
    assert sum(layer.macs_before for layer in run.layer_costs) == result.start["macs"]
    text = page_of(run)
    stem = run.layer_costs[0]
    assert re.search(rf"<title>stem: {amount(stem.params_before, 'params')}[^<]*</title><path", text)
    assert (
        len(re.findall(r"<title>[^<]+</title><path", text)) == 2 * 2 * 2 * 4
    )  # sizes, measures, before and after, layers
    table = Page(text).text
    assert f"{stem.params_after / stem.params_before:.0%}" in table and "whole network" in table
    assert "Each column is a layer" not in Page(page_of(replace(run, layer_costs=()))).text
    timed = tuple(replace(layer, ms_before=2.0, ms_after=1.0) for layer in run.layer_costs)
    assert "2.000 ms → 1.000 ms 50%" in Page(page_of(replace(run, layer_costs=timed))).text


def test_many_layers_are_folded_and_the_small_ones_counted_together(finished) -> None:  # type: ignore[no-untyped-def]
    run = read_run(finished[1])
    many = [LayerCosts(f"conv{n}", 1000, 500, 100, 50) for n in range(100)]
    many += [LayerCosts(f"norm{n}", 0, 0, 1, 1) for n in range(90)] + [LayerCosts("embedding", 0, 0, 5000, 4000)]
    text = page_of(replace(run, layer_costs=tuple(many)))
    page = Page(text)
    assert "All 191 layers" in page.text and "90 layers without MACs" in page.text and "conv99" in page.text
    assert "embedding: 5 k parameters → 4 k parameters" in text and "norm3" not in text


def test_errors_of_candidates_are_shown_as_text(finished) -> None:  # type: ignore[no-untyped-def]
    result, folder = finished
    text = page_of(read_run(folder))
    assert any(candidate.error for record in result.rounds for candidate in record.candidates)
    assert "no &lt;b&gt;luck&lt;/b&gt; &amp; no data" in text and "<b>luck" not in text
    assert "1 failed" in Page(text).text


def test_predictions_stand_beside_what_was_measured(finished) -> None:  # type: ignore[no-untyped-def]
    _, folder = finished
    run = read_run(folder)
    rounds = tuple(replace(record, measured={"macs": record.achieved["macs"]}) for record in run.rounds)
    assert "macs predicted" in Page(page_of(replace(run, rounds=rounds))).text
    assert "macs predicted" not in Page(page_of(run)).text


def test_a_search_that_runs_may_be_looked_at(tmp_path: Path) -> None:
    calls = []

    def stop(model: nn.Module, steps: int) -> None:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, stop)
    page = Page(page_of(read_run(tmp_path)))
    assert "in progress or interrupted" in page.text and "not finished" in page.text
    assert "candidates are finished" in page.text


def test_before_the_first_candidate(tmp_path: Path) -> None:
    def stop(model: nn.Module, steps: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, stop)
    assert "No round is finished yet" in Page(page_of(read_run(tmp_path))).text


def test_a_search_without_data(tmp_path: Path) -> None:
    result = netadapt(Net().eval(), 0.5, example_inputs=IMAGE, config=CONFIG, workdir=tmp_path, progress=False)
    page = Page(page_of(read_run(tmp_path)))
    assert "importance lost" in page.text and f"{len(result.rounds)} rounds" in page.text
    assert "masked out" in page.text


def test_damage_is_named(finished, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    result, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / f"round-{len(result.rounds):04d}" / "round.json").write_text("{")
    text = Page(page_of(read_run(copy))).text
    assert "Damaged:" in text and "round.json" in text
    with pytest.raises(JournalError, match="no run here"):
        write_report(tmp_path)


def test_numbers_and_elements() -> None:
    assert [seconds(s) for s in (0.0123, 0.25, 59, 61, 7260)] == ["12.3 ms", "0.25 s", "59 s", "1 min 1 s", "2 h 1 min"]
    assert amount(40_551_808, "macs") == "40.55 M MACs" and amount(999, "params") == "999 parameters"
    assert amount(3.14159, "latency") == "3.142 ms" and amount(2.5e9, "flops") == "2.5 G FLOPs"
    assert (
        element("td", "<&>", class_="num", data_label='a"b')
        == '<td class="num" data-label="a&quot;b">&lt;&amp;&gt;</td>'
    )
    assert escape(escape("<")) == "&lt;"
    made = table(["n", "x"], [[1, "a"], [2, "b"]], ["n"], [1])
    assert made.count('class="chosen"') == 1 and made.count('class="num"') == 3


def test_importing_it_imports_no_matplotlib() -> None:
    script = "import sys, fxprune.report, fxprune.cli.commands; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib_it_says_what_to_install(finished, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    _, folder = finished
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_svg", None)
    with pytest.raises(ModuleNotFoundError, match=r"fxprune\[report\]"):
        page_of(read_run(folder))


def test_a_result_says_itself_and_writes_its_report_without_a_workdir(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    call = {"example_inputs": torch.zeros(1, 3, 9, 9), "progress": False}
    result = netadapt(model, 0.6, **call)
    kept = netadapt(model, 0.6, workdir=tmp_path / "kept", **call)
    assert str(result) == result.summary() and "fxprune: " in str(result) and "(1, 3, 9, 9) float32" in str(result)
    assert result._repr_html_().startswith("<table><tr><th>") and "-&gt;" in result._repr_html_()
    page, other = result.report(tmp_path / "page.html").read_text(), write_report(tmp_path / "kept").read_text()
    for said in ("Counted for inputs of (1, 3, 9, 9) float32", result.rounds[-1].reason, "Certificate", kept.stopped):
        assert said in page and said in other
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(JournalError, match="is no report of fxprune; nothing was written"):
        result.report(tmp_path / "mine.html")
