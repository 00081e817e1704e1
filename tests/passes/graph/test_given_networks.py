"""Graph modules whose graph is not what they run, or names what they do not hold, are refused at every entry point."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  (defines the operators)
from torch import fx, nn
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from passes import (
    PassError,
    PruneChannels,
    apply_plan,
    capture,
    compensate,
    couple,
    observe,
    refine,
    verify,
)

X = torch.randn(6, 8)


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))


def changed(gm: fx.GraphModule) -> None:
    """The graph says sigmoid, and the code still relu."""
    for node in gm.graph.nodes:
        if node.target == "1":
            node.op, node.target, node.kwargs = "call_function", torch.sigmoid, {}


def swapped(gm: fx.GraphModule) -> None:
    """The graph says x - y, and the code still y - x."""
    with gm.graph.inserting_before(gm.graph.find_nodes(op="output")[0]):
        (output,) = gm.graph.find_nodes(op="output")
        value = output.args[0]
        one, two = gm.graph.call_function(torch.sin, (value,)), gm.graph.call_function(torch.cos, (value,))
        difference = gm.graph.call_function(torch.sub, (one, two))
        output.args = (difference,)
    gm.recompile()
    difference.args = (two, one)


def rewritten(gm: fx.GraphModule) -> None:
    """Each time that the code is written, it has another number in it."""
    written: list[int] = []

    def with_number(body: list[str]) -> list[str]:
        written.append(0)
        return [f"written = {len(written)}\n", *body]

    gm.graph.on_generate_code(lambda _: with_number)
    gm.recompile()


def replaced(gm: fx.GraphModule) -> None:
    gm.forward = lambda x: x * 0


def deleted(gm: fx.GraphModule) -> None:
    gm.delete_submodule("2")


def unset(gm: fx.GraphModule) -> None:
    (output,) = gm.graph.find_nodes(op="output")
    with gm.graph.inserting_before(output):
        scale = gm.graph.create_node("get_attr", "scale")
        output.args = (gm.graph.call_function(torch.mul, (output.args[0], scale)),)
    gm.recompile()


SAID: dict[Callable[[fx.GraphModule], None], str] = {
    changed: r"changed after its code was written.*gm\.recompile\(\)",
    swapped: r"changed after its code was written",
    rewritten: r"on_generate_code was given writes another text each time.*on_generate_code\(lambda _: None\)",
    replaced: r"forward was replaced by a function.*del gm\.forward",
    deleted: r"node _2 .*calls the module '2', which the graph module does not hold",
    unset: r"node scale reads 'scale', which the graph module does not hold",
}
Entry = Callable[[fx.GraphModule, fx.GraphModule, Any], object]
ENTRIES: dict[str, Entry] = {
    "couple": lambda gm, good, plan: couple(gm, X),
    "capture": lambda gm, good, plan: capture(gm, X),
    "capture without inputs": lambda gm, good, plan: capture(gm),
    "PruneChannels": lambda gm, good, plan: PruneChannels(plan)(gm),
    "apply_plan": lambda gm, good, plan: apply_plan(gm, plan),
    "verify of the dense": lambda gm, good, plan: verify(gm, apply_plan(good, plan), plan, X),
    "verify of the pruned": lambda gm, good, plan: verify(good, gm, plan, X),
    "observe": lambda gm, good, plan: observe(gm, couple(good, X), [X]),
    "compensate": lambda gm, good, plan: compensate(gm, observe(good, couple(good, X), [X]), plan),
    "refine of the pruned": lambda gm, good, plan: refine(gm, plan, good, [X]),
    "refine of the dense": lambda gm, good, plan: refine(apply_plan(good, plan), plan, gm, [X]),
}


@pytest.mark.parametrize("edit", SAID, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_graph_that_is_not_what_runs_is_refused_in_words(entry: str, edit: Callable[[fx.GraphModule], None]) -> None:
    good, gm = traced(), traced()
    plan = couple(good, X).plan({"0": tuple(range(8))})
    couple(gm, X)
    edit(gm)
    with pytest.raises(PassError, match=SAID[edit]):
        ENTRIES[entry](gm, good, plan)


def renamed(gm: fx.GraphModule) -> None:
    for node in gm.graph.find_nodes(op="call_module"):
        node.name = f"my{node.name}"


def typed(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        node.type = torch.Tensor


def commented(gm: fx.GraphModule) -> None:
    written: list[int] = []
    gm.graph.on_generate_code(lambda _: lambda body: (written.append(0), [f"# {len(written)}\n", *body])[1])
    gm.recompile()


@pytest.mark.parametrize("edit", [renamed, typed, commented])
def test_code_that_says_the_same_under_other_names_is_taken(edit: Callable[[fx.GraphModule], None]) -> None:
    gm = traced()
    edit(gm)
    captured, pruned = capture(gm, X), apply_plan(gm, couple(gm, X).plan({"0": tuple(range(8))}))
    assert torch.equal(captured(X), gm(X)) and pruned(X).shape == (6, 4)


def test_the_text_says_how_rewritten_code_is_taken() -> None:
    gm = traced()
    rewritten(gm)
    gm.graph.on_generate_code(lambda _: None)
    gm.recompile()
    assert torch.equal(capture(gm, X)(X), gm(X))


def test_recompiled_it_is_taken() -> None:
    gm = traced()
    changed(gm)
    gm.recompile()
    captured, pruned = capture(gm, X), apply_plan(gm, couple(gm, X).plan({"0": tuple(range(8))}))
    assert torch.equal(captured(X), gm(X)) and pruned(X).shape == (6, 4)


def _by_tracing() -> fx.GraphModule:
    return traced()


def _lazy() -> fx.GraphModule:
    with _use_lazy_graph_module(True):
        return traced()


def _lazy_again() -> fx.GraphModule:
    """Changed after its code was written, and recompiled, which its kind leaves for later."""
    gm = _lazy()
    gm(X)
    changed(gm)
    gm.recompile()
    return gm


def _from_dynamo() -> fx.GraphModule:
    graphs: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example: object) -> Callable[..., object]:
        graphs.append(gm)
        return gm.forward

    torch.compile(traced(), backend=backend)(X)
    return graphs[0]


WRITTEN: dict[str, Callable[[], fx.GraphModule]] = {
    "traced": _by_tracing,
    "run": lambda: (gm := capture(traced()), gm(X))[0],
    "captured": lambda: capture(traced()),
    "copied": lambda: copy.deepcopy(traced()),
    "pickled": lambda: pickle.loads(pickle.dumps(traced())),
    "exported": lambda: torch.export.export(traced(), (X,)).module(),
    "exported and copied": lambda: copy.deepcopy(torch.export.export(traced(), (X,)).module()),
    "exported by capture": lambda: capture(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), X, "export"),
    "lazy": _lazy,
    "lazy and changed": _lazy_again,
    "pruned": lambda: apply_plan(traced(), couple(traced(), X).plan({"0": tuple(range(8))})),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_code_that_is_the_graphs_is_taken_whoever_wrote_it(kind: str) -> None:
    gm = WRITTEN[kind]()
    captured = capture(gm, X)
    assert torch.equal(captured(X), gm(X))
    assert [group.size for group in couple(captured, X).groups] == [16 if kind != "pruned" else 8]


def test_what_torch_compile_hands_to_a_backend_is_taken_with_its_weights_as_inputs() -> None:
    gm = _from_dynamo()
    inputs = tuple(node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder"))
    real = tuple(torch.randn(value.shape) for value in inputs)
    assert torch.equal(capture(gm, real)(*real)[0], gm(*real)[0])


def test_a_graph_of_nested_arguments_is_refused_for_what_it_is() -> None:
    net = nn.Linear(8, 4)
    gm = make_fx(lambda named: net(named["x"]) * named["scale"])({"x": X, "scale": torch.ones(1)})
    with pytest.raises(PassError, match=r"takes nested arguments, and its graph their 2 parts, one by one"):
        capture(gm, ({"x": X, "scale": torch.ones(1)},))
    assert capture(make_fx(net)(X), X)(X).shape == (6, 4)


class _OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = traced()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(x) - self.net(y)


@pytest.mark.parametrize(
    "given", [(X, 2 * X), {"x": X, "y": 2 * X}, {"y": 2 * X, "x": X}], ids=["tuple", "dict", "swapped"]
)
def test_a_copy_of_an_exported_module_is_taken(given: object) -> None:
    gm = copy.deepcopy(torch.export.export(_OfTwo(), (X, 2 * X)).module())
    captured = capture(gm, given)
    assert torch.equal(captured(X, 2 * X), gm(X, 2 * X))
    assert [group.size for group in couple(captured, given).groups] == [16]


def _quantised() -> fx.GraphModule:
    gm = torch.export.export(traced(), (X,)).module()
    call = torch.ops.quantized_decomposed
    (output,) = gm.graph.find_nodes(op="output")
    with gm.graph.inserting_before(output):
        value = output.args[0][0]
        small = gm.graph.call_function(call.quantize_per_tensor.default, (value, 0.1, 0, -128, 127, torch.int8))
        wide = gm.graph.call_function(call.dequantize_per_tensor.default, (small, 0.1, 0, -128, 127, torch.int8))
        output.args = ((wide,),)
    gm.recompile()
    return gm


@pytest.mark.parametrize("entry", [couple, capture], ids=["couple", "capture"])
def test_a_quantised_graph_is_refused_by_the_name_of_its_operator(entry: Callable[..., object]) -> None:
    with pytest.raises(
        PassError, match=r"quantised \(quantize_per_tensor\w* \(quantized_decomposed.quantize_per_tensor"
    ):
        entry(_quantised(), X)
