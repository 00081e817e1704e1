"""Joint widths measured beside each other: nearer to the dense network, within the budget, the same after a kill."""

import numpy as np
import pytest
import torch
from test_calibrated import states_equal
from torch import nn

from fxprune import netadapt
from fxprune.errors import SearchError
from fxprune.journal.folder import Folder as Journal
from fxprune.problem.width_grids import Grid
from fxprune.resources.models import Counted
from fxprune.search.joint_widths import improve
from fxprune.workers.repair import Repair

WHOLE = {"a": 24, "b": 24, "c": 24}
MACS = Counted("macs", "MACs", lambda w: w["a"] + w["a"] * w["b"] + w["b"] * w["c"] + w["c"])
LIMITS = {"macs": 0.5 * float(MACS.value(WHOLE))}
GRIDS = {name: Grid(name, 1, 1) for name in WHOLE}


def joint(widths):
    """No sum over groups: what is lost before b is lost again behind it."""
    kept = {name: 1 - np.exp(-widths[name] / 6) for name in WHOLE}
    return float(1 / (kept["a"] ** 2 * kept["b"] ** 3 * kept["c"]))


def compared(start, sweeps=4, measure=None):
    seen = []

    def compare(widths):
        seen.append((joint(widths), widths))
        return seen[-1][0]

    improve(
        [MACS], WHOLE, LIMITS, GRIDS, (start, joint(start)), sweeps, measure or (lambda ws: map(joint, ws)), compare
    )
    return seen


def test_widths_get_better_within_the_budget():
    start = {"a": 24, "b": 8, "c": 12}
    assert float(MACS.value(start)) <= LIMITS["macs"]
    seen = compared(start)
    assert all(float(MACS.value(widths)) <= LIMITS["macs"] for _, widths in seen)
    best = min(
        joint({"a": a, "b": b, "c": c})
        for a in range(1, 25) for b in range(1, 25) for c in range(1, 25)
        if float(MACS.value({"a": a, "b": b, "c": c})) <= LIMITS["macs"]
    )  # fmt: skip
    assert min(seen)[0] <= best + 0.1 * (joint(start) - best)


def test_widths_that_are_worse_are_left_and_no_widths_are_compared_twice():
    start = {"a": 24, "b": 8, "c": 12}
    misleading = compared(start, 2, measure=lambda ws: [-joint(w) for w in ws])
    assert all(error >= joint(start) for error, _ in misleading)
    assert len({tuple(w.values()) for _, w in misleading}) == len(misleading)


@pytest.mark.parametrize("fails", ["here", "beside"])
def test_a_network_without_an_error_says_nothing_of_its_width(fails):
    start = {"a": 24, "b": 8, "c": 12}
    found = compared(start, 2, lambda ws: [None if (w == start) == (fails == "here") else joint(w) for w in ws])
    assert not found


def test_the_whole_network_is_no_candidate():
    """One group alone may shrink: a little wider it would be whole."""
    only = kept(config={"exclude": ["2", "4", "6", "8"]}, budget=0.9)
    assert set(only.rounds[0].winner.widths) == {"0"} and only.met


def kept(depth=5, **changes):
    """Convolutions in a row, at 0.4 of their FLOPs where no other share is asked for, after one sweep."""
    torch.manual_seed(0)
    layers = [layer for i in range(depth) for layer in (nn.Conv2d(12 if i else 3, 12, 3, padding=1), nn.ReLU())]
    net, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)), torch.randn(200, 3, 8, 8)
    for layer in net[::2][:depth]:
        nn.init.kaiming_normal_(layer.weight)
    config = {"netadapt_min_feature_size": 1, "refine": 0, "sweeps": 1, **changes.pop("config", {})}
    budget = changes.pop("budget", 0.4)
    return netadapt(net, budget, example_inputs=x[:2], calibration=[x], progress=False, config=config, **changes)


def test_what_is_found_around_the_first_widths_is_compared_and_measurements_are_never_chosen():
    once, often = kept(config={"sweeps": 0}), kept()
    first, more = once.rounds[0].candidates, often.rounds[0].candidates
    assert len(more) > len(first) and [c.widths for c in more[: len(first)]] == [c.widths for c in first]
    assert all(c.feasible and c.samples is None and c.screened is not None for c in more)
    assert often.rounds[0].winner.screened == max(c.screened for c in more) >= once.rounds[0].winner.screened
    assert often.achieved["flops"] <= 0.4 * often.start["flops"] and often.certificate.max_error < 1e-9


def test_a_search_that_was_killed_between_two_measurements_takes_up_those_that_it_has(tmp_path, monkeypatch):
    own, done = Journal.save_candidate, []

    def killed(self, round, candidate, weights):
        own(self, round, candidate, weights)
        done.append(candidate)
        if sum(c.samples is not None for c in done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_candidate", killed)
        with pytest.raises(KeyboardInterrupt):
            kept(workdir=tmp_path)
    before = list(done)
    done.clear()
    monkeypatch.setattr(Journal, "save_candidate", lambda self, *given: (done.append(given[1]), own(self, *given))[1])
    again = kept(workdir=tmp_path)
    assert not {c.index for c in before} & {c.index for c in done}
    whole = kept()
    assert states_equal(whole, again) and whole.plan == again.plan
    assert all(c.samples is None for c in again.rounds[0].candidates)


def test_networks_are_refined_to_be_measured_and_to_be_compared(monkeypatch):
    own, refined = Repair.refine_lightly, []

    def spied(self, candidate, plan, samples):
        refined.append(own(self, candidate, plan, samples))
        return refined[-1]

    monkeypatch.setattr(Repair, "refine_lightly", spied)
    found = kept(3, config={"refine": 1, "refined": 1})
    listed = found.rounds[0].candidates
    assert len(refined) > 2 * 3 and all(repaired.kept < repaired.compensated for repaired in refined)
    assert all(c.refined and -c.screened in [repaired.kept for repaired in refined] for c in listed)
    assert found.rounds[0].winner.screened == max(c.screened for c in listed) and found.met
    refined.clear()
    closed = kept(3, config={"refine": 0})
    assert not refined and not any(c.refined for c in closed.rounds[0].candidates)


def test_of_the_best_candidates_each_refined_the_best_is_kept():
    one, three = (kept(3, config={"refine": 1, "refined": count}).rounds[0] for count in (1, 3))
    assert one.winner.screened == max(c.screened for c in one.candidates)
    assert three.repaired.kept <= one.repaired.kept
    assert f"best, each refined, candidate {three.chosen} is nearest" in three.reason and "refined" not in one.reason
    assert three.winner.widths == {n: w for n, w in three.widths.items() if w < 12}


def test_a_first_candidate_that_cannot_be_refined_is_compared_in_closed_form(monkeypatch):
    monkeypatch.setattr(Repair, "refine_lightly", lambda *given, **named: 1 / 0)
    found = kept(3, config={"refine": 1}).rounds[0]
    assert found.winner.error is None and not any(c.refined for c in found.candidates)


def test_candidates_that_cannot_be_refined_are_left_and_none_is_an_error(monkeypatch, caplog):
    own, calls = Repair.keep, []

    def fails(self, candidate, plan, *given, **named):
        calls.append(plan)
        if len(calls) == 1:
            raise RuntimeError("no room")
        return own(self, candidate, plan, *given, **named)

    monkeypatch.setattr(Repair, "keep", fails)
    monkeypatch.setattr(Repair, "refines", False)  # widths are measured in closed form
    found = kept(config={"refine": 1}).rounds[0]
    assert len(calls) > 1 and found.winner is not max(found.candidates, key=lambda c: c.screened)
    assert caplog.text.count("could not be repaired: ") == 1
    monkeypatch.setattr(Repair, "keep", lambda *given, **named: 1 / 0)
    with pytest.raises(SearchError, match="the network cannot be repaired: .*division by zero"):
        kept(config={"refine": 1})


def test_groups_of_one_width_keep_it_and_several_processes_find_the_same():
    same = kept(config={"same_width": [["2", "4"]]})
    assert len(same.rounds[0].candidates) > 1
    assert all(len({c.widths.get(name) for name in ("2", "4")}) == 1 for c in same.rounds[0].candidates)
    assert states_equal(kept(3), kept(3, config={"workers": 2}))
