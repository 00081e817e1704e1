"""Everything that is asked of one network: captured, coupled, counted, pruned by half at random, proven, trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import passes
from benchmarks import judge
from benchmarks.machine import Seconds, peak_mib
from benchmarks.networks import Network, build
from passes.graph.module_copies import owned_tensors

TOLERANCE = 1e-9
_WEIGHING = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


@dataclass
class Row:
    """What was found of one network. Errors are relative; None where the step did not come to an end.

    weights_prunable: share of the elements of convolutions' and linear layers' parameters that some group's slices
    cover, counted from the slices themselves. left: why the other elements stay, with their number. captured: how far
    the graph is from the module. verified: the certificate's error. masked: the error against the captured network
    with the slices of the removed units zeroed, computed by `benchmarks.judge` without any help of fxprune.
    """

    name: str
    family: str
    input: str
    proven: str = "whole"
    failures: dict[str, str] = field(default_factory=dict)
    groups: int = 0
    mixed_groups: int = 0
    params: int = 0
    params_prunable: float = 0.0
    macs_prunable: float = 0.0
    weights_prunable: float = 0.0
    left: dict[str, int] = field(default_factory=dict)
    macs_kept: float = 0.0
    captured: float | None = None
    verified: float | None = None
    batch_sizes: tuple[int, ...] = ()
    masked: float | None = None
    cost_equal: bool | None = None
    trains: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether every step came to its end, and every comparison held."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"exact": self.exact}


@dataclass(frozen=True)
class Analysed:
    """A captured network with its analysis, and the same network without half of the units of each group."""

    gm: fx.GraphModule
    coupling: passes.Coupling
    cost: passes.Cost
    plan: passes.Plan
    pruned: fx.GraphModule


def check(network: Network) -> Row:
    """Run every check on `network`; what fails is noted in the row, and what does not depend on it goes on."""
    torch.set_default_dtype(torch.float64)
    row, seconds = Row(network.name, network.family, network.input), Seconds()
    if network.shallow:
        row.proven = f"cut to {', '.join(f'{n} layer(s) of {path}' for path, n in network.shallow.items())}"
        _check_analysis(row, build(network, meta=True), torch.empty(network.shape, device="meta"), seconds)
        seconds_proof = Seconds()
    else:
        seconds_proof = seconds
    with _noting(row, "build"), seconds_proof("build"):
        model = build(network)
    if not row.failures:
        _check_proof(row, model, torch.randn(network.shape), seconds_proof, describe=not network.shallow)
    row.seconds = dict(seconds | {k: v for k, v in seconds_proof.items() if k not in seconds})
    row.peak_mib = peak_mib()
    return row


def random_halves(coupling: passes.Coupling, seed: int = 0) -> dict[str, list[int]]:
    """For every group a random half of its units."""
    random = np.random.default_rng(seed)
    sizes = coupling.widths.items()
    return {name: np.sort(random.permutation(size)[: size - size // 2]).tolist() for name, size in sizes}


def analyse(model: nn.Module, example: torch.Tensor, seconds: Seconds, seed: int = 0) -> Analysed:
    """Capture, couple, cost, a plan that keeps a random half of every group, and prune; each step timed."""
    with seconds("capture"):
        gm = passes.capture(model, example)
    with seconds("couple"):
        coupling = passes.couple(gm, example)
    with seconds("cost"):
        cost = passes.cost(coupling)
        cost.macs(), cost.params()
    keep = random_halves(coupling, seed)
    with seconds("plan"):
        plan = coupling.plan(keep)
    with seconds("prune"):
        pruned = passes.PruneChannels(plan)(gm).graph_module
    return Analysed(gm, coupling, cost, plan, pruned)


def _check_analysis(row: Row, model: nn.Module, example: torch.Tensor, seconds: Seconds) -> Analysed | None:
    """The steps that read no weight: they run on the meta device too."""
    with _noting(row, "analysis"):
        found = analyse(model, example, seconds)
        _describe(row, model, found)
        with _noting(row, "cost"):
            _recount(row, found, example)
        return found
    return None


def _check_proof(row: Row, model: nn.Module, example: torch.Tensor, seconds: Seconds, describe: bool) -> None:
    with _noting(row, "analysis"):
        found = analyse(model, example, seconds)
        if describe:
            _describe(row, model, found)
        with _noting(row, "cost"):
            _recount(row, found, example)
        with _noting(row, "capture"), torch.no_grad():
            row.captured = judge.difference(model(example), found.gm(example))
            _demand(row.captured <= TOLERANCE, f"the graph differs from the module by {row.captured:.2g}")
        with _noting(row, "mask"), seconds("mask"):
            row.masked = masked_difference(found, example)
            _demand(row.masked <= TOLERANCE, f"differs from the zeroed network by {row.masked:.2g}")
        with _noting(row, "verify"), seconds("verify"):
            certificate = passes.verify(found.gm, found.pruned, found.plan, example, TOLERANCE)
            row.verified, row.batch_sizes = certificate.max_error, certificate.batch_sizes
            _demand(len(row.batch_sizes) > 1, f"verified at one batch size only: {certificate.note}")
        with _noting(row, "train"), seconds("train"):
            row.trains = False
            train_once(found.pruned, example)
            row.trains = True


def _describe(row: Row, model: nn.Module, found: Analysed) -> None:
    coverage = found.coupling.coverage()
    row.groups = len(found.coupling.groups)
    row.mixed_groups = sum(g.mixed for g in found.coupling.groups)
    row.macs_prunable, row.params_prunable = coverage.macs, coverage.params
    row.params = sum(p.numel() for p in model.parameters())
    row.weights_prunable, row.left = weights_prunable(model, found.gm, found.coupling)
    row.macs_kept = found.cost.macs(found.plan.widths) / found.cost.macs()


def weights_prunable(model: nn.Module, gm: fx.GraphModule, coupling: passes.Coupling) -> tuple[float, dict[str, int]]:
    """The share of conv and linear parameters that slices cover, and the reasons of the others with their numbers."""
    covered: dict[str, dict[int, np.ndarray]] = {}
    shapes = {name: [axis.size for axis in axes] for name, axes in coupling.structure.tensors.items()}
    for group in coupling.groups:
        for where in group.slices:
            dims = covered.setdefault(where.tensor, {})
            here = dims.setdefault(where.dim, np.zeros(shapes[where.tensor][where.dim], dtype=bool))
            here[where.index.ravel()] = True
    reasons: dict[str, set[str]] = {}
    for frozen in coupling.frozen:
        reasons.setdefault(frozen.tensor, set()).add(frozen.reason)
    total = 0
    left: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, _WEIGHING):
            continue
        for name, parameter in module.named_parameters(path, recurse=False):
            total += parameter.numel()
            kept = np.prod([1 - dim.mean() for dim in covered.get(name, {}).values()])
            if kept:
                why = "; ".join(sorted(reasons.get(name, ()))) if name in shapes else "not part of the captured graph"
                left[why] = left.get(why, 0) + round(float(kept) * parameter.numel())
    ordered = dict(sorted(left.items(), key=lambda item: -item[1]))
    return 1 - sum(left.values()) / total, ordered


def _recount(row: Row, found: Analysed, example: torch.Tensor) -> None:
    """The polynomials against torch's own counter on the pruned network."""
    row.cost_equal = False
    widths = found.plan.widths
    counted, predicted = count_flops(found.pruned, example), found.cost.flops(widths)
    _demand(counted == predicted, f"the polynomial says {predicted:,} FLOPs, the counter {counted:,}")
    counted, predicted = sum(p.numel() for p in found.pruned.parameters()), found.cost.params(widths)
    _demand(counted == predicted, f"the polynomial says {predicted:,} parameters, the network has {counted:,}")
    row.cost_equal = True


def count_flops(network: nn.Module, example: torch.Tensor) -> int:
    """What FlopCounterMode counts; attention as the products that it is made of, and not on the fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            network(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()


def masked_difference(found: Analysed, example: torch.Tensor) -> float:
    """The pruned network against the dense one with zeroed slices, layer norms taken over what remains."""
    dense = copy.deepcopy(found.gm)
    tensors = {name: tensor.detach() for name, tensor in owned_tensors(dense)}  # shares memory with the copy
    zeroed: dict[str, torch.Tensor] = {}
    for group in found.coupling.groups:
        gone = np.setdiff1d(np.arange(group.size), found.plan.keep[group.name])
        for where in group.slices if len(gone) else ():
            positions = torch.from_numpy(where.index[gone].ravel())
            tensors[where.tensor].index_fill_(where.dim, positions, 0)
            zeroed[where.tensor] = torch.cat([zeroed[where.tensor], positions]) if where.tensor in zeroed else positions
    inputs = torch.randn(example.shape[0] + 1, *example.shape[1:])
    with torch.no_grad():
        with judge.norms_over_survivors(dense, zeroed):
            expected = dense(inputs)
        return judge.difference(expected, found.pruned(inputs))


def train_once(network: nn.Module, example: torch.Tensor) -> None:
    """One forward and backward pass in training mode, two samples."""
    network.train()
    outputs = judge.tensors(network(torch.randn(2, *example.shape[1:])))
    torch.stack([t.square().mean() for t in outputs if t.is_floating_point()]).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    _demand(bool(gradients), "no parameter got a gradient")
    _demand(all(bool(torch.isfinite(g).all()) for g in gradients), "a gradient is not finite")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


@contextmanager
def _noting(row: Row, step: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a line of the row: this is a table of what fails, so it must not end there."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()
        row.failures.setdefault(step, f"{type(error).__name__}: {first[0] if first else ''}"[:400])
