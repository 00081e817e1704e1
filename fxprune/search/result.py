"""What `netadapt` returns: the certified network, every round on the way to it, and the way back to any of them."""

from __future__ import annotations

import html
import warnings
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.fx import GraphModule

from fxprune.criteria.curves import Curve
from fxprune.errors import InputError
from fxprune.io.printed_text import printed
from fxprune.io.sample import MAY_DIFFER, equal_outputs
from fxprune.io.tensors import named_tensors, versions_of
from fxprune.journal.program_digest import program_digest
from fxprune.journal.protocol import Journal
from fxprune.journal.rebuilding import rebuild
from fxprune.journal.records import Round
from fxprune.journal.rounds_table import round_rows
from fxprune.problem.inputs import coupled, described
from fxprune.problem.search_problem import CoupledAnew, Problem
from fxprune.problem.stock_widths import StockWidths, state_widths
from fxprune.problem.wrappers import BARE, Wrapping, unwrapped
from fxprune.registries import FIGURES, REPORTS
from fxprune.resources.budgets import Budget
from fxprune.resources.kinds import amount, unit_of
from fxprune.resources.layer_costs import LayerCosts, layer_costs
from fxprune.search.before_after import Compared, before_after
from fxprune.training.repaired import Repaired
from passes import PassError, Plan, capture
from passes.arguments import quoted
from passes.errors import SpecialisedWarning
from passes.graph.module_copies import copy_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from passes import Certificate, Coupling, Plan


@dataclass(frozen=True)
class Timings:
    """Seconds. `overhead` is all that is neither training nor evaluation, as a share of the time that the workers
    had."""

    total: float
    analysis: float
    train: float
    evaluate: float
    verify: float
    workers: int = 1

    @property
    def overhead(self) -> float:
        """The share, 0 to 1, of the workers' time that was spent outside train and evaluate."""
        available = self.total * self.workers
        return max(0.0, 1 - (self.train + self.evaluate) / available) if available else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class NetAdaptResult(CoupledAnew):
    """The outcome of a search.

    `model` is certified by `certificate`, of the class and in the mode (train or eval) of the network that was handed
    in; `plan` is relative to `dense`, that network without wrappers. `form` is "module" or "graph"; where it is another
    than that of what came in, `note` says why. `data_free`: no evaluate was given, and scores are minus
    the importance lost; `calibrated`: scores are minus the divergence from the dense outputs, on held-out calibration
    data. `met`: the budgets are met; `stopped` says why the search ended. `baseline` and `score` are
    those of dense and of model.
    """

    model: nn.Module
    plan: Plan
    certificate: Certificate
    rounds: tuple[Round, ...]
    accepted: int
    budgets: tuple[Budget, ...]
    start: dict[str, float]
    achieved: dict[str, float]
    widths: dict[str, int]
    original_widths: dict[str, int]
    baseline: float
    score: float
    data_free: bool
    met: bool
    stopped: str
    timings: Timings
    dense: nn.Module = field(repr=False)
    coupling: Coupling = field(repr=False)
    example_inputs: object = field(repr=False)
    modes: dict[str, bool] = field(repr=False)
    journal: Journal = field(repr=False)
    form: str = "graph"
    note: str = ""
    calibrated: bool = False
    wrap: Wrapping = field(default=BARE, repr=False)
    problem: Problem | None = field(default=None, repr=False)
    stock: StockWidths | None = field(default=None, repr=False)
    versions: dict[str, tuple[int, int]] | None = field(default=None, repr=False)  # of the tensors of `dense`
    program: nn.Module | None = field(default=None, repr=False)  # the modules of `dense` as they were, its own tensors

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "versions": None}  # another process holds a copy of its own

    @property
    def module(self) -> nn.Module:
        """`model` without its wrappers; names of `plan` are those in its state_dict."""
        return unwrapped(self.model)[0]

    @cached_property
    def graph_module(self) -> GraphModule:
        """The graph of `module`, whose tensors it shares. CaptureError where no front end can capture it."""
        return self.module if isinstance(self.module, GraphModule) else capture(self.module, self.example_inputs)

    def restore(self, round: int) -> nn.Module:
        """The network that a round chose, as it was then; round 0 is the unpruned one.

        Raises InputError where that is built from the network which was handed in, and this has changed since.
        """
        if isinstance(round, bool) or not isinstance(round, int) or not 0 <= round <= len(self.rounds):
            raise InputError(
                f"restore: there is no round {quoted(round)}; expected 0 (unpruned) to {len(self.rounds)}."
            )
        self._check_dense(reads_weights=not round or self.journal.weights(round) is None)
        network = rebuild(self.dense, self.rounds, round, self.journal, self.modes, self.wrap)
        if self.stock is not None and round:
            plan = Plan.from_json(self.rounds[round - 1].plan)
            state_widths(unwrapped(network)[0], self.stock, plan, self.example_inputs)
        return network

    def _check_dense(self, reads_weights: bool) -> None:
        """InputError where the network that was handed in has changed since, in what a round is built from: what it
        computes, and its registered tensors where `reads_weights`."""
        now = versions_of(named_tensors(self.dense))
        changed = [name for name, version in (self.versions or now).items() if now.get(name) != version]
        if changed and reads_weights:
            raise InputError(
                f"restore: the network that was handed in has changed since the search ({changed[0]}), and the round "
                "is built from it. Train a copy of it on, or keep the weights of rounds: workdir=FOLDER."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SpecialisedWarning)  # given by the search
                known, again = self.coupling, coupled(self.dense, self.example_inputs)
        except (PassError, InputError) as error:
            raise InputError(
                f"restore: the network that was handed in has changed since the search: {error}"
            ) from error
        before = self.dense if self.program is None else self.program
        same = program_digest(self.dense, again) == program_digest(before, known)
        if not same and not self._computes_the_same():
            raise InputError(
                f"restore: the network that was handed in computes something else than in the search: {MAY_DIFFER}; "
                "the round is built from it. Make it as it was, and change a copy of it."
            )

    def _computes_the_same(self) -> bool:
        """Whether `dense` gives what it gave: a table that it makes in a call, or counts, changes its calls alone."""
        if self.program is None:
            return False
        now = dict(named_tensors(self.dense))
        before = copy_module(self.program, lambda name, tensor: now.get(name, tensor))
        return equal_outputs(before, self.dense, self.plan.inputs)

    @property
    def repaired(self) -> Repaired | None:
        """With calibration data, what repair did to `model`: divergences from the dense outputs, and each layer."""
        return self.rounds[self.accepted - 1].repaired if self.accepted else None

    @property
    def curves(self) -> dict[str, Curve]:
        """With calibration data, what each width of each group costs."""
        return self.journal.recorded_curves() or {}

    def to_dict(self) -> dict[str, object]:
        """How the search ended, as plain data."""
        return {
            "accepted": self.accepted,
            "achieved": self.achieved,
            "widths": self.widths,
            "baseline": self.baseline,
            "score": self.score,
            "data_free": self.data_free,
            "met": self.met,
            "stopped": self.stopped,
            "timings": {**asdict(self.timings), "overhead": self.timings.overhead},
            "certificate": self.certificate.to_dict(),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def summary(self) -> str:
        """What came of the search, and a table of the rounds and the widths, as text."""
        return summary(self)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        kept = ", ".join(f"{name} {after / self.start[name]:.1%}" for name, after in self.achieved.items())
        return f"<NetAdaptResult of {type(self.module).__name__}: {kept}, {'' if self.met else 'not '}met>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in measure.cells()) + "</tr>"
            for measure in self.before_after
        )
        header = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "left"))
        text = html.escape(self.summary())
        return (
            f"<table><tr>{header}</tr>{rows}</table><details><summary>the search</summary><pre>{text}</pre></details>"
        )

    @cached_property
    def before_after(self) -> tuple[Compared, ...]:
        """Both networks side by side: MACs, parameters, the file of weights, other budgets, the score."""
        networks = (self.dense, self.module)
        costs, scores = (self.start, self.achieved), (self.baseline, self.score)
        return before_after(self.coupling, self.widths, networks, costs, scores)

    @cached_property
    def layers(self) -> tuple[LayerCosts, ...]:
        """MACs and parameters of each layer before and after, in the order of the run; milliseconds with a table."""
        resources = self.problem.resources if self.problem is not None else ()
        return layer_costs(self.coupling, self.widths, resources)

    def plot(self, resource: str | None = None) -> Figure:
        """A matplotlib figure of the score over a resource that was budgeted (None: the first), round by round.

        Needs matplotlib: ``pip install 'fxprune[report]'``. `figure.savefig(path)` keeps it.
        """
        drawn: Figure = FIGURES.find("tradeoff")(self, resource)
        return drawn

    def report(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write one HTML page about the search (as `fxprune report` does for a workdir), and return where it lies.

        A file that is no report of fxprune is left alone; `overwrite` insists. Its plots need matplotlib:
        ``pip install 'fxprune[report]'``.
        """
        written: Path = REPORTS.find("html")(self, path, overwrite)
        return written


def summary(result: NetAdaptResult) -> str:
    names = [budget.resource for budget in result.budgets]
    what = "minus the importance lost (no data were given)" if result.data_free else "score"
    if result.calibrated:
        what = "score (minus the divergence from the dense outputs, held-out calibration data)"
    lines = [f"fxprune: {len(result.rounds)} rounds; {result.stopped}."]
    for budget in result.budgets:
        name = budget.resource
        before, after = result.start[name], result.achieved[name]
        lines.append(
            f"  {name}: {amount(before, name)} -> {amount(after, name)} {unit_of(name)} ({after / before:.1%}), "
            f"budget {amount(budget.limit(before), name)}"
        )
    lines.append(f"  counted for inputs of {described(result.example_inputs)}")
    used = max(after / budget.limit(result.start[budget.resource]) for budget, after in _limited(result))
    problem = result.problem
    if problem is not None and result.met and problem.during(result.accepted).budgets != problem.budgets:
        lines.append(
            f"  answered by a round of an earlier budget, which uses {used:.1%} of this one; rounds only narrow: for a "
            "network nearer to this budget search in another workdir"
        )
    elif result.met and result.rounds and used < 0.98:
        lines.append(
            f"  {used:.1%} of the budget is used: the next wider layer exceeds it. Finer widths: lower "
            "netadapt_min_feature_size, step or round_to, where they are above 1"
        )
    if result.note:
        lines.append(f"  {result.note}")
    lines.append(f"  {what}: {result.baseline:.6g} -> {result.score:.6g}")
    if result.repaired is not None:
        lines.append(f"  {result.repaired}")
        explained = [(layer.before, layer.after) for layer in result.repaired.layers if layer.before is not None]
        if explained:
            before, after = (sum(share[i] or 0.0 for share in explained) / len(explained) for i in (0, 1))
            unchanged = sum(bool(layer.why) for layer in result.repaired.layers)
            lines.append(
                f"  variance of the dense outputs explained, mean of {len(explained)} layers: {before:.1%} sliced, "
                f"{after:.1%} compensated" + (f"; {unchanged} keep their slice" if unchanged else "")
            )
    lines.append(f"  verified: largest error {result.certificate.max_error:.1e}")
    lines += [f"  holds for: {sentence}" for sentence in result.certificate.specialised]
    lines += ["", *_table([["", "before", "after", "left"], *[measure.cells() for measure in result.before_after]])]
    if result.rounds:
        header = ["round", *[f"{name} (target)" for name in names], "chosen", "width", "score"]
        rows = [
            [f"{row.round}{'*' * row.returned}", *row.reached, row.chosen, row.changed, row.score]
            for row in round_rows(result, names, amount)
        ]
        lines += ["", *_table([header, *rows])]
    narrowed = {g: w for g, w in result.widths.items() if w != result.original_widths[g]}
    if narrowed:
        lines += [
            "",
            *_table(
                [["group", "width", "of"], *[[g, str(w), str(result.original_widths[g])] for g, w in narrowed.items()]]
            ),
        ]
    timings = result.timings
    spent = f"{timings.total:.1f} s: analysis {timings.analysis:.1f}, verification {timings.verify:.1f}"
    if not result.data_free:
        spent += (
            f", training {timings.train:.1f}, evaluation {timings.evaluate:.1f}; "
            f"{timings.overhead:.1%} of the time outside training and evaluation"
        )
    lines += ["", spent]
    return printed("\n".join(lines))


def _limited(result: NetAdaptResult) -> list[tuple[Budget, float]]:
    return [(budget, result.achieved[budget.resource]) for budget in result.budgets]


def _table(rows: list[list[str]]) -> list[str]:
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
