"""The proof that a pruned network computes what the masked dense one computes, in float64, on random inputs.

Two networks run side by side. The dense one keeps its shape: every slice that a removed unit occupies is zeroed, and
operators that take statistics over a pruned axis take them over the surviving positions only (`passes.references`,
written apart from the rewriting). The pruned one runs as it is. Outputs must agree at two batch sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from passes.apply_plan import module_coupling_for
from passes.axes import Axis, Variable, leaves
from passes.certificate import Certificate
from passes.coupling import Coupling
from passes.errors import EquivalenceError
from passes.infer import as_arguments, composite_attention, source_of
from passes.meta import LightMode
from passes.ops import Record, Value
from passes.plan import Plan
from passes.prune import coupling_for
from passes.references import REFERENCES, column, narrowed
from passes.skeleton import copy_with, like, owned_tensors
from passes.units import Mask, survivors
from passes.verify_module import verify_module


@torch.inference_mode(False)
def verify(
    network: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any, tol: float = 1e-9,
    *, trained: bool = False, seed: int = 0, runs: int = 2,
) -> Certificate:  # fmt: skip
    """Prove that `pruned` computes what `network` computes with the units removed that `plan` removes.

    Both are graphs (see `verify_graph`), or both are modules (see `passes.verify_module`).
    """
    kinds = {isinstance(one, fx.GraphModule) for one in (network, pruned)}
    if len(kinds) > 1:
        raise EquivalenceError(
            f"verify: one is a graph and the other a module ({type(network).__name__}, {type(pruned).__name__}); "
            "compare two of one form"
        )
    if kinds == {True}:
        return verify_graph(
            network, pruned, plan, example_inputs, tol, trained=trained, seed=seed, runs=runs  # type: ignore[arg-type]
        )
    coupling = module_coupling_for(network, plan)
    plan.check(coupling)
    coupling = coupling.formed({name: np.asarray(order) for name, order in plan.orders.items()})
    return verify_module(
        network, pruned, coupling, plan, example_inputs, tol, trained=trained, seed=seed, runs=runs
    )  # fmt: skip


def verify_graph(
    gm: fx.GraphModule, pruned: fx.GraphModule, plan: Plan, example_inputs: Any, tol: float = 1e-9,
    *, trained: bool = False, seed: int = 0, runs: int = 2,
) -> Certificate:  # fmt: skip
    """Prove that `pruned` computes what `gm` computes with the units removed that `plan` removes.

    example_inputs: as for `couple`; floating point ones are replaced by normal random numbers (`runs` different
    ones at the given batch size and one at a second), others are used as they are. Both networks run in evaluation
    mode, in float64, on the device of their parameters; neither is changed.
    trained: prove it for pruned's own weights (after fine-tuning): embedded in the dense network, zeros elsewhere.

    Raises EquivalenceError that names the first differing node, PlanError where the plan is for another graph.
    """
    coupling = coupling_for(gm, plan)
    plan.check(coupling)
    masks = coupling.masks(plan)
    coupling = coupling.formed({name: np.asarray(order) for name, order in plan.orders.items()})
    pairs = [_pair(gm, pruned, coupling, plan, trained, {})]
    alike = _noise(gm, pruned, seed)
    if alike:
        pairs.append(_pair(gm, pruned, coupling, plan, trained, alike))
    device = next((t.device for _, t in owned_tensors(pruned)), torch.device("cpu"))
    worst, compared, sizes, note = 0.0, 0, [], ""
    inputs_of = list(_inputs(as_arguments(example_inputs, gm), device, seed, runs))
    cases = [(batch, inputs, pairs[0]) for batch, inputs in inputs_of]
    cases += [(*inputs_of[0], pair) for pair in pairs[1:]]
    for case, (batch, inputs, (dense64, pruned64)) in enumerate(cases):
        try:
            expected = _run(dense64, gm.graph, inputs, _MaskedOperators(coupling, masks))
        except Exception as error:
            if case == 0:
                raise
            note = f"the dense graph runs at batch size {cases[0][0]} alone: {str(error).splitlines()[0]}"
            continue
        try:
            got = _run(pruned64, pruned.graph, inputs)
        except Exception as error:
            raise EquivalenceError(
                f"the pruned network fails at batch size {batch} where the dense one runs: {error}"
            ) from error
        difference, compared = _compare(expected, got)
        if not difference <= tol:
            where = _first_difference(gm, pruned, dense64, pruned64, coupling, masks, inputs, tol)
            raise EquivalenceError(
                f"{where}: outputs differ by {difference:.3g} relative (tolerance {tol:g}, batch size {batch}); "
                "the pruned network does not compute what the masked one does and must not be used"
            )
        worst = max(worst, difference)
        sizes.append(batch)
    mixed = tuple(g.name for g in coupling.groups if g.mixed and len(plan.keep[g.name]) < g.size)
    removed = sum(size - len(plan.keep[name]) for name, size in plan.sizes.items())
    return Certificate(
        worst, tol, tuple(dict.fromkeys(sizes)), len(sizes), compared, seed, removed, mixed, trained, len(alike), note
    )  # fmt: skip


def _double(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach()
    return data.to(torch.float64, copy=True) if data.is_floating_point() else data.clone()


def _noise(gm: fx.GraphModule, pruned: fx.GraphModule, seed: int) -> dict[str, torch.Tensor]:
    """Noise of the dense shape for every parameter of `pruned` whose elements are all alike."""
    generator = torch.Generator().manual_seed(seed)
    dense, noise = dict(gm.named_parameters()), {}
    for name, small in pruned.named_parameters():
        if (
            name in dense
            and small.numel() > 1
            and small.is_floating_point()
            and bool((small == small.flatten()[0]).all())
        ):
            shape = dense[name].shape
            noise[name] = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64).to(small.device)
    return noise


def _pair(
    gm: fx.GraphModule, pruned: fx.GraphModule, coupling: Coupling, plan: Plan, trained: bool,
    noise: Mapping[str, torch.Tensor],
) -> tuple[torch.nn.Module, torch.nn.Module]:  # fmt: skip
    """Both networks' modules in float64: the dense one with removed slices zeroed, or pruned's weights embedded."""
    masks = coupling.masks(plan)
    removed: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for group in coupling.groups:
        gone = np.setdiff1d(np.arange(group.size), plan.keep[group.name])
        if len(gone):
            for where in group.slices:
                removed[where.tensor].append((where.dim, where.index[gone].ravel()))
    small = dict(owned_tensors(pruned))

    def remaining(name: str) -> list[np.ndarray]:
        return [np.flatnonzero(survivors(a, masks)) for a in coupling.structure.tensors[name]]

    def masked(name: str, tensor: torch.Tensor) -> torch.Tensor:
        data = _double(tensor)
        if trained and name in small:
            data = _embedded(data, small[name], remaining(name))
        data = data + noise[name] if name in noise else data
        for dim, positions in removed[coupling.aliases[name]]:
            data.index_fill_(dim, torch.from_numpy(positions).to(data.device), 0)
        return like(tensor, data)

    def shrunk(name: str, tensor: torch.Tensor) -> torch.Tensor:
        data = _double(tensor)
        if name in noise:
            index = np.ix_(*remaining(name))
            data = data + noise[name][tuple(torch.from_numpy(i).to(data.device) for i in index)]
        return like(tensor, data)

    return copy_with(gm, masked), copy_with(pruned, shrunk)


def _embedded(data: torch.Tensor, small: torch.Tensor, remain: list[np.ndarray]) -> torch.Tensor:
    if not remain:
        return _double(small).to(data.device)
    result = torch.zeros_like(data)
    index = np.ix_(*remain)
    result[tuple(torch.from_numpy(i).to(data.device) for i in index)] = _double(small).to(data.device)
    return result


def _inputs(arguments: tuple[Any, ...], device: torch.device, seed: int, runs: int) -> Iterator[tuple[int, tuple]]:
    """Random inputs: `runs` at the example batch size, one at another."""
    first = next((t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.dim()), None)
    batch = int(first.shape[0]) if first is not None else 1
    for run in range(runs + (first is not None)):
        generator = torch.Generator().manual_seed(seed + run)
        size = batch if run < runs else batch + 1 + (batch == 1)

        def made(tensor: torch.Tensor, size: int = size, generator: torch.Generator = generator) -> torch.Tensor:
            shape = list(tensor.shape)
            if shape and shape[0] == batch:
                shape[0] = size
            if tensor.is_floating_point():
                return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
            if tensor.device.type == "meta":
                return torch.ones(shape, dtype=tensor.dtype, device=device)
            if list(tensor.shape) == shape:
                return tensor.detach().clone().to(device)
            return torch.cat([tensor, tensor, tensor])[:size].detach().to(device)

        yield size, pytree.tree_map_only(torch.Tensor, made, arguments)


@contextmanager
def _evaluating(root: torch.nn.Module) -> Iterator[None]:
    with torch.no_grad(), composite_attention():
        root.eval()
        yield


def _run(root: torch.nn.Module, graph: fx.Graph, inputs: tuple, mode: _MaskedOperators | None = None, keep: Any = None):
    run = _Nodes(root, graph, mode, keep)
    torch.manual_seed(0)
    inputs = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
    # the tape knows attention by the products it is made of, so the masked network runs these
    products = sdpa_kernel(SDPBackend.MATH) if mode is not None else nullcontext()
    with _evaluating(root), products, mode or nullcontext(), _InDouble():
        return run.run(*inputs, enable_io_processing=False)


_DOUBLE = {
    **dict.fromkeys([torch.float32, torch.float16, torch.bfloat16], torch.float64),
    **dict.fromkeys([torch.complex64, torch.complex32], torch.complex128),
}


class _InDouble(LightMode):
    """Keeps double precision where a network names another (``x.float()``): rounding makes 1e-8 of 1e-16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _DOUBLE:
            kwargs = {**kwargs, "dtype": _DOUBLE[kwargs["dtype"]]}
        return func(*args, **kwargs)


class _Nodes(fx.Interpreter):
    """Runs a graph over given modules, tells the mode which node runs, and keeps results if asked to."""

    def __init__(self, root, graph: fx.Graph, mode: _MaskedOperators | None, keep: dict[str, Any] | None) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self.mode, self.keep = mode, keep

    def run_node(self, n: fx.Node) -> Any:
        if self.mode is not None:
            self.mode.enter(n.name)
        result = super().run_node(n)
        if self.keep is not None:
            self.keep[n.name] = pytree.tree_map_only(torch.Tensor, torch.clone, result)
        return result


def _compare(expected: Any, got: Any) -> tuple[float, int]:
    """The largest relative difference, and how many tensors were compared."""
    first = [t for t in pytree.tree_leaves(expected) if isinstance(t, torch.Tensor)]
    second = [t for t in pytree.tree_leaves(got) if isinstance(t, torch.Tensor)]
    if [t.shape for t in first] != [t.shape for t in second]:
        return float("inf"), len(first)
    return max((_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0), len(first)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return float((a != b).any())
    finite = torch.isfinite(a)
    if not torch.equal(
        torch.nan_to_num(a, posinf=2, neginf=-2)[~finite], torch.nan_to_num(b, posinf=2, neginf=-2)[~finite]
    ):
        return float("inf")
    gap = (a - b)[finite].abs().max().item() if finite.any() else 0.0
    size = a[finite].abs().max().item() if finite.any() else 0.0
    return gap / size if size else gap


def _first_difference(gm, pruned, dense64, pruned64, coupling: Coupling, masks, inputs, tol: float) -> str:
    """The first node whose surviving positions differ, in the words of an error message."""
    dense_values: dict[str, Any] = {}
    pruned_values: dict[str, Any] = {}
    _run(dense64, gm.graph, inputs, _MaskedOperators(coupling, masks), dense_values)
    _run(pruned64, pruned.graph, inputs, None, pruned_values)
    for node in gm.graph.nodes:
        value = coupling.structure.values.get(node.name)
        known = [v for v in pytree.tree_leaves(value) if isinstance(v, Value)]
        dense = [t for t in pytree.tree_leaves(dense_values.get(node.name)) if isinstance(t, torch.Tensor)]
        if len(known) == len(dense):
            dense = [_surviving(t, v.axes, masks) for t, v in zip(dense, known, strict=True)]
        error, _ = _compare(dense, pruned_values.get(node.name))
        if not error <= tol:
            place = ", ".join(p for p in (str(node.target), source_of(node)) if p)
            return f"node {node.name} ({place}) is the first that differs"
    return "no single node differs by itself"


def _surviving(tensor: torch.Tensor, axes: tuple[Axis, ...], masks) -> torch.Tensor:
    for dim, axis in enumerate(axes):
        if narrowed(axis, masks):
            index = np.flatnonzero(survivors(axis, masks))
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return tensor


class _MaskedOperators(LightMode):
    """Applies operators that mix, or sum what is not zero, to the surviving positions."""

    def __init__(self, coupling: Coupling, masks: Mapping[Variable, Mask]) -> None:
        super().__init__()
        self.masks = masks
        self.special: dict[tuple[str, Any], list[Record | None]] = defaultdict(list)
        for number, record in enumerate(coupling.structure.records):
            mixes = any(narrowed(a, masks) for a in record.mixed)
            sums = any(v in masks for v in coupling.unmasked.get(number, ()))
            self.special[record.node, record.func].append(record if mixes or sums else None)
        self._waiting: dict[tuple[str, Any], Iterator[Record | None]] = {}
        self._node = ""

    def enter(self, node: str) -> None:
        """Calls from here on belong to this node."""
        self._node, self._waiting = node, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = (self._node, func)
        if key not in self.special or all(r is None for r in self.special[key]):
            return func(*args, **kwargs)
        waiting = self._waiting.setdefault(key, iter(self.special[key]))
        record = next(waiting, None)
        if record is None:
            return func(*args, **kwargs)
        return self._masked(record, func, args, kwargs)

    def _masked(self, record: Record, func, args, kwargs):
        if record.mixed and any(narrowed(a, self.masks) for a in record.mixed):
            reference = REFERENCES.get(func.overloadpacket)
            if reference is None:
                raise EquivalenceError(
                    f"{func} mixes a pruned axis at {self._node}, and no reference says what it should give"
                )
            return reference(func, args, kwargs, record, self.masks)
        operands = iter(record.inputs)
        cleared = {a for a in record.contracted}

        def clear(tensor: torch.Tensor) -> torch.Tensor:
            value = next(operands)
            for dim, axis in enumerate(value.axes):
                if narrowed(axis, self.masks) and any(set(leaves(axis)) & set(leaves(c)) for c in cleared):
                    remain = column(survivors(axis, self.masks), tensor, dim).bool()
                    tensor = torch.where(remain, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
            return tensor

        args, kwargs = pytree.tree_map_only(torch.Tensor, clear, (args, kwargs))
        return func(*args, **kwargs)
