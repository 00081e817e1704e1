"""The proofs of a search: of all that it may do, before it trains anything, and of the network that it ends with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fxprune.problem.search_problem import Problem
from fxprune.training.candidate import seeded
from passes import Certificate, EquivalenceError, Plan, apply_plan, verify
from passes.errors import PrecisionError
from passes.graph.module_copies import owned_tensors


def prove_halves(problem: Problem) -> Certificate:
    """Cut a random half of every group that the search may touch, and prove the result against the masked network.

    Groups with outer blocks are formed at random too, as ranking will form them. Raises EquivalenceError or PassError.
    """
    draw = np.random.default_rng(problem.seed)
    groups = [group for group in problem.coupling.groups if group.name in problem.grids]
    orders = {g.name: np.stack([draw.permutation(g.size) for _ in range(g.blocks)]) for g in groups if g.blocks > 1}
    coupling = problem.coupling.formed(orders)
    keep = {g.name: np.sort(draw.permutation(g.size)[: (g.size + 1) // 2]) for g in groups}
    plan = coupling.plan({name: tuple(units.tolist()) for name, units in keep.items()})
    return proven(problem, apply_plan(problem.dense, plan), plan)


def proven(problem: Problem, network: nn.Module, plan: Plan, trained: bool = False) -> Certificate:
    """`verify` for a network of the search. The EquivalenceError of one that differs says how to go on, too."""
    try:
        with seeded(problem.seed):  # verification draws inputs, and the caller's random state is not its own
            return verify(problem.dense, network, plan, problem.example_inputs, trained=trained)
    except EquivalenceError as error:
        raise type(error)(f"{error}. {_advice(problem, error, trained)}") from error


def _advice(problem: Problem, error: EquivalenceError, trained: bool) -> str:
    if isinstance(error, PrecisionError):  # no form of the search and no other group would change that
        if trained:
            return "Let train leave each weight and buffer in the type that it had"
        if any(t.is_floating_point() and t.dtype != torch.float32 for _, t in owned_tensors(problem.dense)):
            return "Search it in float32"
    graph = ', or search its graph (form="graph")' if problem.form == "module" else ""
    return f"Keep the layers before that place as they are (exclude: [names of their groups]){graph}"
