"""Hooks that keep features elsewhere are run many times by an analysis, of which nothing is left there."""

from collections import defaultdict, deque
from functools import partial

import pytest
import torch
from torch import nn

from fxprune import netadapt
from passes import apply_plan, capture, couple, verify
from passes.process.outside_state import outside_kept
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
    with outside_kept([nn.Linear(2, 2), 5]):
        pass

    def fails(module, inputs, output):
        SEEN.append(output)
        raise ValueError("a hook's own")

    before = list(SEEN)
    with pytest.raises(ValueError, match="own"), outside_kept([net := with_hook(fails)]):
        net(torch.randn(2, 6))
    assert before == SEEN


def test_a_capture_leaves_nothing_where_hooks_keep_things():
    hook, read = list(hooks())[1]
    capture(with_hook(hook), torch.randn(4, 6))
    assert not read()


TABLES = {}


def ramp(h):
    key = h.shape[-1]
    if key not in TABLES:
        TABLES[key] = torch.linspace(0, 1, key, dtype=h.dtype, device=h.device)
    return TABLES[key]


class Tabled(nn.Module):
    """Keeps a table for each length, in its class and in its file, in the type of its first call."""

    of_class = {}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(3, 16, 3), nn.Conv1d(16, 4, 3)

    def forward(self, x):
        h = self.a(x).relu()
        if h.shape[-1] not in self.of_class:
            self.of_class[h.shape[-1]] = ramp(h)
        return self.b(h * ramp(h) + self.of_class[h.shape[-1]])


def test_tables_of_a_class_and_its_file_are_left_as_they_were():
    TABLES.clear()
    net, x = Tabled(), torch.randn(2, 3, 8)
    TABLES["mine"] = kept = torch.ones(1)
    coupling = couple(net, x)
    plan = coupling.plan({group.name: range(group.size // 2) for group in coupling.groups})
    pruned = apply_plan(net, plan)
    verify(net, pruned, plan, x)
    observe(net, coupling, [x])
    assert list(TABLES.values()) == [kept] and not Tabled.of_class
    for length in (8, 16, 11):
        assert net(torch.randn(1, 3, length)).dtype == torch.float32
