"""A graph module whose code is generated late is a graph module in every way that people use one."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from passes import PruneChannels, capture, couple
from passes.graph.lazy_codegen import graph_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.second(self.first(x).relu()) * scale


def fresh() -> fx.GraphModule:
    return capture(Net().eval(), torch.randn(4, 3))


def generated(gm: fx.GraphModule) -> bool:
    return "_code" in vars(gm)


def _saved(gm: fx.GraphModule, x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(gm, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)(x)


def _exported(gm: fx.GraphModule, x: Tensor) -> Tensor:
    return torch.export.export(gm, (x,)).module()(x)


USES: dict[str, Callable[[fx.GraphModule, Tensor], Tensor]] = {
    "call": lambda gm, x: gm(x),
    "forward": lambda gm, x: gm.forward(x),
    "class": lambda gm, x: type(gm).forward(gm, x),
    "keyword": lambda gm, x: gm(x=x),
    "deepcopy": lambda gm, x: copy.deepcopy(gm)(x),
    "copy": lambda gm, x: copy.copy(gm)(x),
    "pickle": lambda gm, x: pickle.loads(pickle.dumps(gm))(x),
    "save": _saved,
    "retrace": lambda gm, x: fx.symbolic_trace(gm)(x),
    "interpreter": lambda gm, x: fx.Interpreter(gm).run(x),
    "jit": lambda gm, x: torch.jit.trace(gm, (x,))(x),
    "export": _exported,
    "child": lambda gm, x: nn.Sequential(gm, nn.Identity())(x),
    "functional": lambda gm, x: torch.func.functional_call(gm, dict(gm.named_parameters()), (x,)),
}


@pytest.mark.parametrize("use", USES)
def test_used_before_its_code_is_there(use: str) -> None:
    x = torch.randn(4, 3)
    eager = fresh()
    expected = fx.GraphModule(eager, copy.deepcopy(eager.graph))(x)
    assert not generated(eager), "the point of it"
    assert torch.equal(USES[use](eager, x), expected)


@pytest.mark.slow
def test_compiled_before_its_code_is_there() -> None:
    gm, x = fresh(), torch.randn(4, 3)
    expected = fx.GraphModule(gm, copy.deepcopy(gm.graph))(x)
    assert torch.allclose(torch.compile(gm)(x), expected, atol=1e-6)


def test_shows_code_signature_and_name_of_the_model() -> None:
    assert "self.second" in fresh().code
    assert list(inspect.signature(fresh().forward).parameters) == ["x", "scale"]
    assert type(fresh()).__name__ == "Net" and "first" in repr(fresh())
    assert "self.second" in fresh().print_readable(print_output=False)


def test_edits_are_in_the_code() -> None:
    gm, x = fresh(), torch.randn(4, 3)
    before = gm(x)
    product = next(n for n in gm.graph.nodes if n.name == "mul")
    product.replace_all_uses_with(product.args[0])
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert torch.equal(gm(x) * 2, before)
    again: Any = fresh()
    again.recompile()
    assert generated(again)


def test_a_pruned_network_is_generated_late_too() -> None:
    gm = fresh()
    plan = couple(gm, torch.randn(4, 3)).plan({"first": (0, 2, 5)})
    pruned = PruneChannels(plan)(gm).graph_module
    assert not generated(gm) and not generated(pruned)
    assert pruned(torch.randn(7, 3)).shape == (7, 2) and generated(pruned) and not generated(gm)


def test_other_code_generators_are_left_to_torch() -> None:
    exported = torch.export.export(Net(), (torch.randn(4, 3),)).module()
    assert isinstance(exported, fx.GraphModule)
    assert generated(graph_module(exported, exported.graph, "Net"))


@pytest.mark.parametrize("run_before", [False, True])
def test_its_class_can_be_asked_and_scripted(run_before: bool) -> None:
    made, x = fresh(), torch.randn(4, 3)
    if run_before:
        made(x)
    names = [name for name, _ in inspect.getmembers(type(made))]
    assert {"forward", "_code"} <= set(names)

    class Below(type(made)):  # type: ignore[misc]
        pass

    assert callable(Below.forward)
    gm = capture(nn.Sequential(nn.Linear(3, 6), nn.ReLU()))
    torch.testing.assert_close(torch.jit.script(gm)(x), gm(x))
