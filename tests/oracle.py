"""An independent judge of prunings: zero what `Group.slices` names in a copy of the dense network, and compare.

It knows nothing of axes. The dense graph runs as it is, over a copy of its weights in which the slices of the
removed units are zero; the pruned graph runs beside it, in float64, at two batch sizes. Where a removed unit would
change the others (`Group.mixed`), the reference is `passes.verify`, which is tested by itself in test_verify.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from passes import Coupling, Plan, PruneChannels, capture, cost, couple, verify

TOLERANCE = 1e-9


@dataclass
class Finding:
    """What the judge saw of one network."""

    gm: fx.GraphModule
    coupling: Coupling
    errors: list[float] = field(default_factory=list)
    batches: set[int] = field(default_factory=set)
    counted: bool = True

    @property
    def groups(self) -> str:
        """Names and sizes of the groups, ``"conv1 8, conv2 6 mixed"``."""
        return ", ".join(f"{g.name} {g.size}{' mixed' if g.mixed else ''}" for g in self.coupling.groups)


def examine(
    model: nn.Module,
    inputs: Any,
    shares: tuple[float, ...] = (1 / 2, 1 / 3),
    seed: int = 0,
    *,
    counted: bool = True,
    apart: bool = True,
) -> Finding:
    """Prune a random share of the units of every group of `model` and assert every law that a pruning must keep.

    apart: also prune each group by itself. counted: False where torch's FLOP counter does not know an operator.

    Raises AssertionError (or what the passes raise) where one is broken.
    """
    model = randomised(copied(model).double(), seed).eval()
    inputs = doubled(inputs)
    gm = capture(model, inputs)
    before = snapshot(gm)
    coupling = couple(gm, inputs)
    finding = Finding(gm, coupling, counted=counted)
    for number, share in enumerate(shares if coupling.groups else ()):
        judge(finding, random_plan(coupling, share, seed + number), inputs, seed + number)
    for number, group in enumerate(coupling.groups if shares and apart and len(coupling.groups) > 1 else ()):
        keep = random_plan(coupling, 1 / 2, seed + number).keep[group.name]
        alone(finding, coupling.plan({group.name: keep}), inputs)
    assert_same(snapshot(gm), before)
    if not coupling.groups:
        assert all(f.reason for f in coupling.frozen), "frozen without a reason"
    return finding


def judge(finding: Finding, plan: Plan, inputs: Any, seed: int = 0) -> fx.GraphModule:
    """Prune by `plan` and assert every law; returns the pruned network."""
    gm, coupling = finding.gm, finding.coupling
    result = PruneChannels(plan)(gm)
    pruned = result.graph_module
    assert result.modified == any(len(k) < coupling.widths[g] for g, k in plan.keep.items())
    verify(gm, pruned, plan, inputs, TOLERANCE)
    if any(group.mixed for group in coupling.groups):
        plain = coupling.plan({g.name: plan.keep[g.name] for g in coupling.groups if not g.mixed})
        _compare(finding, PruneChannels(plain)(gm).graph_module, plain, inputs, seed)
        shapes_agree(run(gm, inputs), run(pruned, inputs))
    else:
        _compare(finding, pruned, plan, inputs, seed)
    recount(finding, pruned, plan, inputs)
    trains(gm, pruned, inputs)
    assert set(pruned.state_dict()) == set(gm.state_dict())
    return pruned


def alone(finding: Finding, plan: Plan, inputs: Any) -> None:
    """One group pruned by itself: what is computed from its size must not have relied on another's."""
    pruned = PruneChannels(plan)(finding.gm).graph_module
    verify(finding.gm, pruned, plan, inputs, TOLERANCE)
    recount(finding, pruned, plan, inputs)


def _compare(finding: Finding, pruned: fx.GraphModule, plan: Plan, inputs: Any, seed: int) -> None:
    dense = zeroed(finding.gm, finding.coupling, plan)
    for batch, case in batches(inputs, seed):
        try:
            expected = run(dense, case)
        except Exception:
            if not finding.batches:
                raise
            continue  # the network itself has its batch size written in
        got = run(pruned, case)
        shapes_agree(expected, got)
        finding.batches.add(batch)
        finding.errors.append(difference(expected, got))
        assert finding.errors[-1] <= TOLERANCE, f"outputs differ by {finding.errors[-1]:.3g} at batch size {batch}"


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with statistics, norms and biases that hide nothing: none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.5)
    return model


def doubled(tree: Any) -> Any:
    """`tree` with its floating point tensors in float64."""
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, tree)


def random_plan(coupling: Coupling, share: float | None, seed: int) -> Plan:
    """Keep a random `share` of the units of every group, at least one; for None a random number of units each."""
    rng = np.random.default_rng(seed)
    counts = {
        g.name: (g.size, max(1, int(g.size * share)) if share else int(rng.integers(1, g.size + 1)))
        for g in coupling.groups
    }
    return coupling.plan({name: sorted(rng.choice(*count, replace=False).tolist()) for name, count in counts.items()})


def zeroed(gm: fx.GraphModule, coupling: Coupling, plan: Plan) -> fx.GraphModule:
    """A copy of `gm` with zeros in every slice of every removed unit."""
    dense = copied(gm)
    tensors = dict(_tensors(dense))
    with torch.no_grad():
        for group in coupling.groups:
            gone = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
            for where in group.slices:
                tensor = tensors.get(where.tensor)
                if tensor is None:  # a plain attribute, in no state_dict
                    path, _, name = where.tensor.rpartition(".")
                    tensor = getattr(dense.get_submodule(path), name)
                tensor.index_fill_(where.dim, torch.from_numpy(where.index[gone].ravel()), 0)
    return dense


def copied(network: nn.Module) -> Any:
    """A deep copy; tensors that hooks have left as plain attributes (old weight norm) are no obstacle."""
    left = {id(t): t.detach().clone() for m in network.modules() for t in m.__dict__.values() if isinstance(t, Tensor)}
    return copy.deepcopy(network, left)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def run(network: nn.Module, inputs: Any) -> Any:
    """The outputs in evaluation mode, on copies of the inputs."""
    inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    network.eval()
    torch.manual_seed(0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return call(network, inputs)


def call(network: nn.Module, inputs: Any) -> Any:
    """``network(...)`` for a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


def batches(inputs: Any, seed: int) -> Iterator[tuple[int, Any]]:
    """Random inputs at the example batch size and at a larger one; integers stay what they are."""
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    batch = tensors[0].shape[0]
    for size in (batch, 2 * batch):
        generator = torch.Generator().manual_seed(seed + size)

        def made(tensor: Tensor, size: int = size, generator: torch.Generator = generator) -> Tensor:
            follows = tensor.dim() > 0 and tensor.shape[0] == batch
            if not tensor.is_floating_point():
                return tensor[torch.arange(size) % batch] if follows else tensor
            shape = (size, *tensor.shape[1:]) if follows else tensor.shape
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        yield size, pytree.tree_map_only(Tensor, made, inputs)


def shapes_agree(expected: Any, got: Any) -> None:
    """Two outputs have one structure and the same shapes."""
    first, one = pytree.tree_flatten(expected)
    second, two = pytree.tree_flatten(got)
    assert one == two, f"the structure of the output changed: {one} became {two}"
    shapes = [[getattr(t, "shape", None) for t in side] for side in (first, second)]
    assert shapes[0] == shapes[1], f"shapes of the outputs changed: {shapes[0]} became {shapes[1]}"


def difference(expected: Any, got: Any) -> float:
    """The largest difference relative to the largest value, over all outputs; NaN and infinity must match."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        if not isinstance(a, Tensor):
            assert a == b
        elif a.numel():
            a, b = a.double(), b.double()
            assert torch.equal(a.isfinite(), b.isfinite())
            scale = a.nan_to_num().abs().max().item() or 1.0
            worst = max(worst, (a - b).nan_to_num().abs().max().item() / scale)
    return worst


def flops_of(network: nn.Module, inputs: Any) -> int:
    """What torch's own counter counts, without fused attention (which it cannot see on a CPU)."""
    with FlopCounterMode(display=False) as counter:
        run(network, inputs)
    return counter.get_total_flops()


def params_of(network: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(p.numel() for p in network.parameters())


def recount(finding: Finding, pruned: fx.GraphModule, plan: Plan, inputs: Any) -> None:
    """The polynomials say of `plan` what counting the rebuilt network says."""
    costs = cost(finding.coupling)
    counted = flops_of(pruned, inputs) if finding.counted else costs.flops(plan.widths)
    assert costs.flops(plan.widths) == counted, "the polynomial of FLOPs is not the recount"
    assert costs.params(plan.widths) == params_of(pruned), "the polynomial of parameters is not the recount"


def trains(gm: fx.GraphModule, pruned: fx.GraphModule, inputs: Any) -> None:
    """In train mode the pruned network runs forward and backward wherever the dense one does, on as many parameters."""
    reached = _gradients(copied(gm), inputs)
    if reached is not None:
        assert _gradients(copied(pruned), inputs) == reached


def _gradients(network: nn.Module, inputs: Any) -> set[str] | None:
    network.train()
    inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    outputs = [t for t in pytree.tree_leaves(call(network, inputs)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        return None
    sum(t.sum() for t in outputs).backward()
    return {name for name, p in network.named_parameters(remove_duplicate=False) if p.grad is not None}


def snapshot(gm: fx.GraphModule) -> dict[str, Any]:
    """Everything of `gm` that a functional pass must leave as it was."""
    code = gm.code  # asked for first: that may be what generates it
    modules = {
        name: {k: v for k, v in m.__dict__.items() if isinstance(v, (int, float, bool, str, tuple))}
        for name, m in gm.named_modules()
    }
    tensors = {name: (t, t.detach().clone(), t.requires_grad) for name, t in _tensors(gm)}
    return {"code": code, "nodes": [n.name for n in gm.graph.nodes], "modules": modules, "tensors": tensors}


def assert_same(after: dict[str, Any], before: dict[str, Any]) -> None:
    """Two snapshots are equal, bit for bit, over the same tensor objects."""
    for key in ("code", "nodes", "modules"):
        assert after[key] == before[key], f"the {key} of the original changed"
    assert list(after["tensors"]) == list(before["tensors"])
    for name, (tensor, value, grad) in before["tensors"].items():
        now, now_value, now_grad = after["tensors"][name]
        assert now is tensor and now_grad == grad, f"{name} of the original was replaced"
        assert torch.equal(_bits(value), _bits(now_value)), f"{name} of the original was written to"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
