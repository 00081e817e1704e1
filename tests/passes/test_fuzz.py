"""Random networks keep the laws: masked == pruned, polynomial == recount, plans round trip, originals are untouched."""

from __future__ import annotations

import pytest
import torch
from fuzz import Step, images, network, programs
from hypothesis import HealthCheck, given, settings
from oracle import assert_same, difference, examine, judge, random_plan, run, snapshot

from passes import Plan, PruneChannels

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

# What hypothesis has once shrunk to, or what was found on the way.
FOUND: dict[str, list[Step]] = {
    "a number that rewriting scales, pruned again": [("Conv", 0, 0, 0), ("Sliced", 0, 0, 1), ("Reshaped", 0, 0, 0)],
}


def laws(program: list[Step]) -> None:
    """Everything that must hold of one program."""
    inputs = images().double()
    finding = examine(network(program), inputs, shares=())
    gm, coupling = finding.gm, finding.coupling
    if not coupling.groups:
        return
    before = snapshot(gm)
    first = random_plan(coupling, None, 1)
    assert Plan.from_json(first.to_json()) == first
    here = coupling.after(first)
    second = random_plan(here, None, 2)
    joined = first.then(second)
    assert here.after(second).fingerprint == coupling.after(joined).fingerprint
    at_once = judge(finding, joined, inputs)
    stepwise = PruneChannels(second)(PruneChannels(first)(gm).graph_module).graph_module
    for (name, a), (other, b) in zip(stepwise.state_dict().items(), at_once.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), f"{name} differs between two prunings and one"
    assert difference(run(stepwise, inputs), run(at_once, inputs)) == 0
    assert_same(snapshot(gm), before)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    laws(FOUND[name])


@given(programs)
@settings(max_examples=40, derandomize=True, **COMMON)
def test_random_networks_keep_the_laws(program: list[Step]) -> None:
    laws(program)


@pytest.mark.slow
@given(programs)
@settings(max_examples=5000, print_blob=True, **COMMON)
def test_many_random_networks_keep_the_laws(program: list[Step]) -> None:
    laws(program)
