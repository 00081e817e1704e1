"""`PrunePass`: analysis, data-free planning, rewriting and proof as one pass of anyone's torch.fx pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import this_before_that_pass_constraint

from fxprune.api import netadapt
from fxprune.config.keys import NetAdaptConfig
from fxprune.errors import FxpruneError
from fxprune.resources.budgets import Budget, parse_budget
from fxprune.search.call_arguments import read_config
from passes import Certificate, Plan
from passes.arguments import got
from passes.documents.described_values import described
from passes.graph.fingerprint import fingerprint
from passes.graph.given_networks import quantised_call
from passes.graph.module_copies import owned_tensors

RECORD = "fxprune"


class PipelineError(FxpruneError):
    """A pass stands where it cannot do its work."""


@dataclass(frozen=True)
class Pruned:
    """What `PrunePass` did to a graph, in `gm.meta["fxprune"]`.

    plan: relative to the graph that the pass was given. start and achieved: each resource before and after, of the
    graph that `made` names: a pass that comes later may change it. settings: the whole configuration, and the seed.
    """

    plan: Plan
    certificate: Certificate
    budget: object
    start: dict[str, float]
    achieved: dict[str, float]
    settings: NetAdaptConfig
    seed: int
    made: str


@dataclass(frozen=True, eq=False)
class PrunePass(PassBase):
    """Prune a graph to a budget without data, in a PassManager or called by itself; the graph given is left as it is.

    budget, example_inputs, config and seed: as for `fxprune.netadapt`, which compares candidates by the importance that
    they lose. example_inputs may be left out where an earlier pass wrote shapes into the graph (ShapeProp). The result
    is certified, and `gm.meta["fxprune"]` (`Pruned`) holds the plan and the certificate.

    It reports truthfully whether it modified, and leaves alone a graph that it made itself with the same settings, so
    a PassManager may run it several times (`steps`). A share is of the graph that it is given: where passes in between
    rebuild the graph, or give its tensors other shapes, an absolute `Budget(resource, value=...)` says what is meant.
    Such a budget is looked at again after any change of the graph.

    It must stand before quantization, which fixes scales to channels, and says so where it does not. Folding of
    batch norms may come before or after. It has no place in a backend of `torch.compile`, whose graphs take all
    weights as inputs: prune first, and compile the result; or apply it to a captured or exported graph, which holds
    its weights.

    >>> from torch.fx.passes.infra.pass_manager import PassManager
    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)))
    >>> manager = PassManager([PrunePass(0.5, torch.randn(1, 3, 9, 9))])   # doctest: +SKIP
    """

    budget: float | int | Budget | Sequence[Budget]
    example_inputs: object = None
    config: NetAdaptConfig | dict | str | Path | None = None
    seed: int = 0

    def requires(self, graph_module: fx.GraphModule) -> None:
        """PipelineError where the graph is none, is quantized already, or holds no weights."""
        if not isinstance(graph_module, fx.GraphModule):
            raise PipelineError(
                f"PrunePass: got a {type(graph_module).__name__}; capture it first (passes.capture, fx.symbolic_trace)"
            )
        found = _quantized(graph_module)
        if found is not None:
            raise PipelineError(
                f"PrunePass: {found} is quantized, and its scales belong to its channels; put PrunePass before "
                "quantization: PassManager(passes, constraints=prune.before(quantize))"
            )
        if graph_module.graph.find_nodes(op="placeholder") and next(graph_module.parameters(), None) is None:
            raise PipelineError(
                "PrunePass: the graph holds no parameters, and what it takes as inputs keeps its shapes. In what "
                "torch.compile hands to a backend all weights are inputs: prune before it, "
                "torch.compile(netadapt(model, ...).model), or apply PrunePass to a graph that holds its weights "
                "(passes.capture(model), or torch.export.export(model, ...).module())"
            )

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """PassResult(pruned graph, True), or (the graph, False) where it meets the budget already."""
        settings, known = read_config(self.config), graph_module.meta.get(RECORD)
        if (
            isinstance(known, Pruned)
            and (known.budget, known.settings, known.seed) == (self.budget, settings, self.seed)
            and known.made == self._named(graph_module)
        ):
            return PassResult(graph_module, False)
        result = netadapt(
            graph_module,
            self.budget,
            example_inputs=self.example_inputs,
            config=settings,
            progress=False,
            seed=self.seed,
        )
        if not result.plan.narrows:
            return PassResult(graph_module, False)
        pruned = result.graph_module
        pruned.meta[RECORD] = Pruned(
            result.plan, result.certificate, self.budget, result.start, result.achieved, settings, self.seed,
            self._named(pruned),
        )  # fmt: skip
        return PassResult(pruned, True)

    def _named(self, gm: fx.GraphModule) -> str:
        """What of a graph decides whether it meets the budget: its shapes for a share, all of it for a number."""
        if any(budget.ratio is None for budget in parse_budget(self.budget)):
            return f"{fingerprint(gm)} {described(self.example_inputs)}"
        return str(sorted((name, list(tensor.shape)) for name, tensor in owned_tensors(gm)))

    def before(self, *passes: Callable[..., object]) -> list[Callable[..., bool]]:
        """Constraints for a PassManager: this pass runs before each of these."""
        _check_passes(passes)
        return [this_before_that_pass_constraint(self, that) for that in passes]

    def after(self, *passes: Callable[..., object]) -> list[Callable[..., bool]]:
        """Constraints for a PassManager: this pass runs after each of these."""
        _check_passes(passes)
        return [this_before_that_pass_constraint(this, self) for this in passes]


def _check_passes(passes: tuple[object, ...]) -> None:
    for that in passes:
        if not callable(that):
            raise PipelineError(f"PrunePass: got {got(that)}; expected the passes of a PassManager, which are callable")


def _quantized(gm: fx.GraphModule) -> str | None:
    """The first module or node that quantization made; None in a graph of floats."""
    for path, module in gm.named_modules():
        if any(part in type(module).__module__ for part in (".quantized", ".ao.quantization", ".quantization.pt2e")):
            return f"{path} ({type(module).__name__})"
    return quantised_call(gm.graph)
