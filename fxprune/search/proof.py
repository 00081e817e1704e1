"""The proof before a search trains anything: what it may do to the network is done once, and must be exact."""

from __future__ import annotations

import numpy as np

from fxprune.problem.search_problem import Problem
from fxprune.training.candidate import seeded
from passes import Certificate, apply_plan, verify


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
    with seeded(problem.seed):
        return verify(problem.dense, apply_plan(problem.dense, plan), plan, problem.example_inputs)
