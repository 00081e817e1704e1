"""Hooks that keep features elsewhere are run many times by an analysis, of which nothing is left there."""

from collections import defaultdict, deque
from functools import partial

import pytest
import torch
from torch import nn

from fxprune import netadapt
from passes import apply_plan, capture, couple, verify
from passes.process.hook_state import hooks_kept
from passes.statistics import observe

SEEN = []


class Extractor:
    """Keeps features in attributes, in a dict of lists, and counts."""

    def __init__(self):
        self.features, self.calls, self.last = defaultdict(list), 0, None

    def keep(self, module, inputs, output):
        self.features["first"].append(output)
        self.calls, self.last = self.calls + 1, output


def into_a_global(module, inputs, output):
    SEEN.append(output)


def with_hook(hook):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    net[0].register_forward_hook(hook)
    return net


def counting():
    calls = 0

    def hook(module, inputs, output):
        nonlocal calls
        calls += 1

    return hook, lambda: calls


def hooks():
    listed, queue, extractor = [], deque(maxlen=2), Extractor()
    count, read = counting()
    yield into_a_global, lambda: len(SEEN)
    yield lambda module, inputs, output: listed.append(output), lambda: len(listed)
    yield partial(lambda store, module, inputs, output: store.append(output), queue), lambda: len(queue)
    yield count, read
    yield extractor.keep, lambda: extractor.calls + sum(map(len, extractor.features.values()))


@pytest.mark.parametrize("number", range(5))
def test_what_hooks_keep_elsewhere_is_as_it_was(number):
    hook, read = list(hooks())[number]
    net, x = with_hook(hook), torch.randn(4, 6)
    net(x)
    before = read()
    assert before
    coupling = couple(net, x)
    plan = coupling.plan({coupling.groups[0].name: range(4)})
    verify(net, apply_plan(net, plan), plan, x)
    observe(net, coupling, [torch.randn(20, 6)])
    netadapt(net, 0.7, example_inputs=x, calibration=[torch.randn(20, 6)], progress=False, config={"sweeps": 0})
    assert read() == before
    net(x)
    assert read() > before


def test_a_network_without_hooks_and_one_whose_hooks_fail_are_let_through():
    with hooks_kept([nn.Linear(2, 2), 5]):
        pass

    def fails(module, inputs, output):
        SEEN.append(output)
        raise ValueError("a hook's own")

    before = list(SEEN)
    with pytest.raises(ValueError, match="own"), hooks_kept([net := with_hook(fails)]):
        net(torch.randn(2, 6))
    assert before == SEEN


def test_a_capture_leaves_nothing_where_hooks_keep_things():
    hook, read = list(hooks())[1]
    capture(with_hook(hook), torch.randn(4, 6))
    assert not read()
