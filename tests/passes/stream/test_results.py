"""What a caller can read is neither cut nor left out of the proof, whatever holds it."""

import collections
import dataclasses
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from passes import CaptureError, EquivalenceError, apply_plan, capture, couple, verify
from passes.graph.annotations import Annotation
from passes.stream.results import called, plain_values_in, tensors_in, values_in

X = torch.randn(3, 6)


@dataclasses.dataclass(slots=True)
class Slotted:
    inside: object


class Object:
    def __init__(self, inside):
        self.inside = inside


class Hidden:
    __slots__ = ("inside",)

    def __init__(self, inside):
        self.inside = inside


class Dict(dict):
    pass


def with_attribute(h):
    made = Dict()
    made.inside = h
    return made


HOLDERS = {
    "deque": lambda h: collections.deque([h]),
    "values": lambda h: {"a": h}.values(),
    "items": lambda h: {"a": h}.items(),
    "slots": Hidden,
    "dataclass with slots": Slotted,
    "object": Object,
    "zip": lambda h: zip([h], [1], strict=True),
    "reversed": lambda h: reversed([h]),
    "map": lambda h: map(abs, [h]),
    "generator": lambda h: (t for t in (h,)),
    "partial": lambda h: functools.partial(torch.add, h),
    "method": lambda h: h.sum,
    "closure": lambda h: lambda: h,
    "default": lambda h: lambda t=h: t,
    "array of objects": lambda h: np.array([h, None], dtype=object),
    "namespace": lambda h: types.SimpleNamespace(deep=[{"t": h}]),
    "attribute of a dict": with_attribute,
    "key": lambda h: {h: 1},
    "set": lambda h: {h},
}
SIZES = {
    "key": lambda n: {n: 0},
    "text": lambda n: f"width {n}",
    "text as a key": lambda n: {f"p{n}": 0},
    "bytes": lambda n: bytes([n]),
    "range": range,
    "set": lambda n: {n},
    "array": lambda n: np.array([n]),
    "object": Object,
    "slice": lambda n: slice(0, n),
}


class Returns(nn.Module):
    """A layer, what `held` makes of its result, and a second layer."""

    def __init__(self, held):
        super().__init__()
        self.first, self.second, self.held = nn.Linear(6, 8), nn.Linear(8, 2), held

    def forward(self, x):
        h = self.first(x).relu()
        return self.held(h), self.second(h)


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_tensor_in_any_object_of_the_result_keeps_its_shape(holder):
    assert [tuple(t.shape) for t in tensors_in((holder(X), 1))] == [(3, 6)]
    assert not couple(Returns(holder), X).groups


@pytest.mark.parametrize("made", SIZES.values(), ids=SIZES)
def test_a_plain_value_made_of_a_size_is_compared(made):
    net = Returns(lambda h: made(h.shape[-1]))
    coupling = couple(net, X)
    plan = coupling.plan({coupling.groups[0].name: range(4)})
    with pytest.raises(EquivalenceError, match="a plain value in the result is made of a size"):
        verify(net, apply_plan(net, plan), plan, X)


def test_values_are_listed_in_order_and_modules_are_not_entered():
    assert plain_values_in({"a": (1, 2.5), "b": [np.int64(3), np.bool_(True)]}) == ["a", "b", 1, 2.5, 3, True]
    assert tensors_in((nn.Linear(2, 2), Object(nn.Linear(2, 2)), Object)) == []
    assert len(tensors_in(nn.ParameterList([torch.zeros(2)]))) == 1


class Fills(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x, store):
        h = self.first(x).relu()
        store.append(h) if isinstance(store, list) else store.update(h=h)
        return self.second(h)


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("route", [lambda net, _: net, capture], ids=["module", "graph"])
def test_what_is_put_into_an_argument_keeps_its_shape_and_the_callers_own_stays_as_it_was(kind, route):
    store = kind()
    net = Fills()
    network = route(net, (X, store))
    assert not couple(network, (X, store)).groups
    assert not store


def test_values_written_into_an_argument_are_part_of_what_a_call_gives():
    x, y = torch.ones(2), torch.ones(2)
    assert len(tensors_in(called(lambda a, b: a.add_(1), (x, y), {}))) == 2
    assert len(tensors_in(called(lambda a, b: a + 1, (x, y), {}))) == 1


class Named(nn.Module):
    """A pyramid whose levels are named by their sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, x):
        h = self.first(x).relu()
        return {f"p{h.shape[-1]}": self.second(h)}, f"{h.shape[-1]:03d}", str(h.shape[-2])


def test_texts_made_of_sizes_are_those_of_the_example_in_a_graph():
    image = torch.randn(1, 3, 16, 16)
    graph = capture(Named(), image)
    levels, *texts = graph(image)
    assert list(levels) == ["p7"] and texts == ["007", "7"]


class Wrong(nn.Module):
    def forward(self, x):
        return {repr(x): x}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)


def test_a_graph_with_other_texts_than_its_module_is_refused():
    with pytest.raises(CaptureError, match="does not compute what the module computes"):
        capture(Wrong(), X)


@pytest.mark.parametrize("as_graph", [False, True])
def test_what_the_passes_note_of_a_network_is_not_looked_through(as_graph: bool) -> None:
    inputs = torch.randn(2, 3)
    network: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    network = capture(network, inputs) if as_graph else network
    coupling = couple(network, inputs)
    cut = apply_plan(network, coupling.plan({"0": range(4)}))
    notes = cut.meta if as_graph else vars(cut)
    held = [value for value in notes.values() if isinstance(value, Annotation)]
    assert len(held) == 1 and values_in(held) == []
