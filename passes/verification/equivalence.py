"""The proof that a pruned network computes what the masked dense one computes, in double precision.

Two networks run side by side. The dense one keeps its shape: every slice that a removed unit occupies is zeroed, and
operators that take statistics over a pruned axis take them over the surviving positions only (`passes.ops.references`,
written apart from the rewriting). The pruned one runs as it is, node by node and by its own compiled forward. Outputs
must be numbers somewhere and agree on inputs like the example, on random ones and at other sizes
(`passes.equality.draws`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from passes.analysis.coupling import Coupling
from passes.apply.cut_module import module_coupling_for
from passes.apply.prune_channels import coupling_for
from passes.arguments import integer, is_a, no_fake_tensors, number
from passes.axes.expressions import Axis
from passes.axes.index_sets import survivors
from passes.documents.certificate import Certificate
from passes.documents.plan import Plan, is_plan
from passes.equality.comparison import all_finite, compare, readable
from passes.equality.constant_double import nothing_random
from passes.equality.double import double, in_double
from passes.equality.draws import Draw, draws, smaller_example
from passes.equality.streamed import Streamed
from passes.equality.trees import map_tensors
from passes.errors import EquivalenceError, PassError
from passes.frontend.fidelity import settle
from passes.graph.annotations import note, specialised_in
from passes.graph.given_networks import given
from passes.graph.module_copies import copy_with, evaluate_mode
from passes.graph.nodes import source_of
from passes.masked.masked_graph import MaskedOperators
from passes.masked.proof_weights import (
    dense_weights,
    device_of,
    equal_elements,
    finite_parameters,
    pruned_weights,
    random_instead,
)
from passes.nested_values import tree_leaves_only
from passes.ops import Value
from passes.ops.references import narrowed
from passes.process.state import leaves_no_trace
from passes.process.torch_private import codegen_of, pytree
from passes.stream.graph_stream import as_arguments
from passes.stream.results import called
from passes.verification.evidence import Evidence, fails_in_own_types
from passes.verification.module_equivalence import verify_module


@leaves_no_trace
@torch.inference_mode(False)
def verify(
    network: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: object, tol: float = 1e-9,
    *, trained: bool = False, seed: int = 0, runs: int = 2,
) -> Certificate:  # fmt: skip
    """Prove that `pruned` computes what `network` computes with the units removed that `plan` removes.

    Both are graphs (see `verify_graph`), or both are modules (see `module_equivalence`). Neither is changed, nor is
    the random state of the caller.
    """
    _check_arguments(network, pruned, plan, tol, seed, runs)
    is_a(trained, bool, "verify: trained", "True or False")
    no_fake_tensors(example_inputs, "verify")
    if isinstance(network, fx.GraphModule) and isinstance(pruned, fx.GraphModule):
        return verify_graph(network, pruned, plan, example_inputs, tol, trained=trained, seed=seed, runs=runs)
    if isinstance(network, fx.GraphModule) or isinstance(pruned, fx.GraphModule):
        raise EquivalenceError(
            f"verify: one is a graph and the other a module ({type(network).__name__}, {type(pruned).__name__}); "
            "compare two of one form"
        )
    coupling = module_coupling_for(network, plan)
    plan.check(coupling)
    coupling = coupling.formed({name: np.asarray(order) for name, order in plan.orders.items()})
    return verify_module(network, pruned, coupling, plan, example_inputs, tol, trained=trained, seed=seed, runs=runs)


def _check_arguments(network: Any, pruned: Any, plan: object, tol: object, seed: object, runs: object) -> None:
    is_a(network, nn.Module, "verify: network", "the network before pruning")
    is_a(pruned, nn.Module, "verify: pruned", "the network after pruning")
    is_plan(plan, "verify: plan", "the Plan that made one of the other")
    number(tol, "verify: tol", least=0)
    integer(seed, "verify: seed", least=0, below=2**63)
    integer(runs, "verify: runs", least=1, below=2**31)
    for name, one in (("network", network), ("pruned", pruned)):
        given(one, f"verify: {name}")


def verify_graph(
    gm: fx.GraphModule, pruned: fx.GraphModule, plan: Plan, example_inputs: object, tol: float = 1e-9,
    *, trained: bool = False, seed: int = 0, runs: int = 2,
) -> Certificate:  # fmt: skip
    """`verify` for graphs.

    example_inputs: as for `couple`. `runs` sets of inputs have its sizes: its own values first, then values drawn from
    them; one of normal random numbers and one for each size that the dense network leaves free follow. Both networks
    run in evaluation mode, in float64, on the device of their parameters. The certificate is also noted in the pruned
    graph's meta.
    trained: prove it for pruned's own weights (after fine-tuning): embedded in the dense network, zeros elsewhere.

    Raises EquivalenceError that names the first differing node, or says why nothing can be compared (outputs or
    parameters that are no numbers); PlanError where the plan is for another graph; ValueError where runs is not
    positive.
    """
    settle(gm)
    coupling = coupling_for(gm, plan)
    plan.check(coupling)
    masks = coupling.masks(plan)
    coupling = coupling.formed({name: np.asarray(order) for name, order in plan.orders.items()})
    for network, name in ((pruned, "pruned"), *(() if trained else ((gm, "dense"),))):
        finite_parameters(network, name)

    def pruned_copy(noise: Mapping[str, torch.Tensor]) -> nn.Module:
        return copy_with(pruned, Streamed(pruned_weights(coupling, masks, noise), double, at_once=True))

    def pair(noise: Mapping[str, torch.Tensor]) -> tuple[nn.Module, nn.Module]:
        weights = dense_weights(coupling, plan, pruned, trained, noise)
        return copy_with(gm, Streamed(weights, double, at_once=True)), pruned_copy(noise)

    dense64, pruned64 = pair({})
    proof = _Proof(gm, pruned, coupling, masks, tol, plan.removed_blocks)
    seen = proof.seen
    device = device_of(pruned)
    arguments = as_arguments(example_inputs, gm)
    first: Draw | None = None
    for draw in draws(arguments, seed, runs, device, seen.taken):
        got = proof.on(draw, dense64, pruned64)
        if first is None:
            first = draw
            proof.compiled(draw, got, pruned_copy({}))
    assert first is not None, "there is one draw at least"
    alike = equal_elements(gm, pruned, seed)
    del dense64, pruned64
    if alike:
        small = smaller_example(arguments, seed, device, seen.taken)
        noise = "noise in the place of equal weights"
        seen.on_either(small, first, lambda draw: proof.on(draw, *pair(alike), noise) is not None)
    own = (dense_weights(coupling, plan, pruned, False, {}), pruned_weights(coupling, masks, {}))
    proof.in_own_precision(first, *(Streamed(weights, _copy, at_once=True) for weights in own))
    specialised = (*specialised_in(gm), *random_instead(gm))
    certificate = seen.certificate(plan, coupling, tol, seed, trained, len(alike), specialised)
    note(pruned, certificate=certificate)
    return certificate


@dataclass
class _Proof:
    """Runs both networks on one set of inputs after another."""

    gm: fx.GraphModule
    pruned: fx.GraphModule
    coupling: Coupling
    masks: Mapping
    tol: float
    removed_blocks: tuple[str, ...] = ()
    seen: Evidence = field(default_factory=Evidence)

    def on(self, draw: Draw, dense: nn.Module, pruned: nn.Module, label: str = "") -> object:
        """Compare the two on one draw: what the pruned one gives, None where that proves nothing.

        Raises EquivalenceError.
        """
        label = label or draw.label
        try:
            expected = self._run(dense, self.gm.graph, draw.inputs, self._masked())
        except PassError:
            raise
        except Exception as error:  # what user code raises on inputs that it does not take
            if draw.required:
                raise EquivalenceError(
                    f"the dense graph does not run in double precision on {label}: {_first_line(error)}; nothing "
                    "can be compared"
                ) from error
            self.seen.refused(draw, label, f"the dense graph does not run on them: {_first_line(error)}")
            return None
        moved = self.seen.leading.moved(draw, expected)
        if moved:
            self.seen.refused(draw, label, moved)
            return None
        try:
            got = self._run(pruned, self.pruned.graph, draw.inputs)
        except Exception as error:
            raise EquivalenceError(
                f"the pruned network fails on {label}, where the dense one runs: {_first_line(error)}"
            ) from error
        found = compare(expected, got)
        if not found.error <= self.tol:
            where = self._first_difference(dense, pruned, draw)
            raise EquivalenceError(
                f"{where}: outputs differ by {found.error:.3g} relative (tolerance {self.tol:g}, on {label}); "
                "the pruned network does not compute what the masked one does and must not be used"
            )
        holding = [name for name, buffer in self.pruned.named_buffers() if not all_finite(readable(buffer))]
        also = f" (buffers that hold NaN or infinity: {', '.join(holding)})" if holding else ""
        return got if self.seen.agreed(draw, label, found, draw.required, also) else None

    def compiled(self, draw: Draw, expected: object, pruned: nn.Module) -> None:
        """Compare the pruned network's own forward, as a user calls it, with what its nodes gave one by one.

        pruned: a fresh copy of it, since a network may keep something of each call.
        """
        try:
            got = _run_forward(self.pruned, pruned, draw.inputs)
        except Exception as error:
            raise EquivalenceError(
                "the nodes of the pruned graph run one by one, but its generated code does not: "
                f"{type(error).__name__}: {_first_line(error)}; call recompile() where the graph was edited"
            ) from error
        found = compare(expected, got)
        if not found.error <= self.tol:
            raise EquivalenceError(
                f"the pruned network's generated code differs by {found.error:.3g} from its nodes run one by one; "
                "call recompile() where the graph was edited"
            )

    def in_own_precision(self, draw: Draw, dense: Streamed, pruned: Streamed) -> None:
        """The pruned network runs in its own types, as a user calls it, where the dense one does."""
        try:
            _in_own_types(self.pruned, copy_with(self.pruned, pruned), draw.inputs)
        except Exception as error:
            try:
                _in_own_types(self.gm, copy_with(self.gm, dense), draw.inputs)
            except Exception as also:  # what does not run so before it was pruned need not run so afterwards
                self.seen.notes.append(f"not run in its own types: the dense graph does not: {_first_line(also)}")
                return
            raise fails_in_own_types("graph", self.pruned, _first_line(error)) from error

    def _masked(self) -> MaskedOperators:
        return MaskedOperators(self.coupling, self.masks, self.removed_blocks)

    def _run(
        self,
        root: nn.Module,
        graph: fx.Graph,
        inputs: tuple,
        mode: MaskedOperators | None = None,
        keep: dict[str, object] | None = None,
    ) -> object:
        run = _Nodes(root, graph, mode, keep)
        # the tape knows attention by the products it is made of, so the masked network runs these
        products = sdpa_kernel(SDPBackend.MATH) if mode is not None else nullcontext()
        with products, mode or nullcontext(), in_double(root):
            result = called(partial(run.run, enable_io_processing=False), map_tensors(torch.clone, inputs), {})
        if mode is not None:
            mode.enter("")
        return result

    def _first_difference(self, dense: nn.Module, pruned: nn.Module, draw: Draw) -> str:
        """The first node whose surviving positions differ, in the words of an error message."""
        dense_values: dict[str, object] = {}
        pruned_values: dict[str, object] = {}
        self._run(dense, self.gm.graph, draw.inputs, self._masked(), dense_values)
        self._run(pruned, self.pruned.graph, draw.inputs, None, pruned_values)
        for node in self.gm.graph.nodes:
            value = self.coupling.structure.values.get(node.name)
            known = tree_leaves_only(Value, value)
            expected = tree_leaves_only(torch.Tensor, dense_values.get(node.name))
            if len(known) == len(expected):
                expected = [_surviving(t, v.axes, self.masks) for t, v in zip(expected, known, strict=True)]
            got = tree_leaves_only(torch.Tensor, pruned_values.get(node.name))
            if self.removed_blocks and node.name not in pruned_values:
                continue  # it went with its branch
            if not compare(expected, got).error <= self.tol:
                place = ", ".join(p for p in (str(node.target), source_of(node)) if p)
                return f"node {node.name} ({place}) is the first that differs"
        return "no single node differs by itself"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _in_own_types(gm: fx.GraphModule, root: nn.Module, inputs: tuple) -> None:
    """Run the generated forward of `gm` over the modules of `root`, in the type of its parameters."""
    kind = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.get_default_dtype())
    own = map_tensors(lambda t: t.to(kind) if t.is_floating_point() else t, inputs)
    with nothing_random(), torch.no_grad():
        _run_forward(gm, evaluate_mode(root), own, nullcontext())


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _run_forward(
    pruned: fx.GraphModule, root: nn.Module, inputs: tuple, mode: AbstractContextManager[object] | None = None
) -> object:
    """The generated forward of `pruned` over the modules of `root`; in double precision without `mode`."""
    args, kwargs = map_tensors(torch.clone, tuple(inputs)), dict[str, object]()
    info = getattr(codegen_of(pruned.graph), "pytree_info", None)
    if info is not None and info.in_spec is not None:  # it takes the nested arguments, of which placeholders are leaves
        args, kwargs = pytree.tree_unflatten(list(args), info.in_spec), {}
        if len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], dict):
            args, kwargs = args
    with mode or in_double(root):
        return called(partial(type(pruned).forward, root), args, kwargs)


class _Nodes(fx.Interpreter):
    """Runs a graph over given modules, sets the mode's running node, and keeps results if asked to."""

    def __init__(self, root, graph: fx.Graph, mode: MaskedOperators | None, keep: dict[str, object] | None) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False
        self.mode, self.keep = mode, keep

    def run_node(self, n: fx.Node) -> object:
        if self.mode is not None:
            self.mode.enter(n.name)
        result = super().run_node(n)
        if self.keep is not None:
            self.keep[n.name] = pytree.tree_map_only(torch.Tensor, torch.clone, result)
        return result


def _surviving(tensor: torch.Tensor, axes: tuple[Axis, ...], masks) -> torch.Tensor:
    for dim, axis in enumerate(axes):
        if narrowed(axis, masks):
            index = np.flatnonzero(survivors(axis, masks))
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return tensor
