"""A module whose written sizes were replaced, under what reads or copies programs: the same numbers, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes import apply_plan, capture, couple
from passes.errors import SizeError

X = torch.randn(3, 6)


class Halves(nn.Module):
    """No shape tells that it is cut: the halves of what `a` gives are named by their places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.cat([h[:, 6:] * 2, h[:, :6]], 1))


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


@pytest.fixture
def cut() -> nn.Module:
    torch.manual_seed(0)
    net = Halves().eval()
    coupling = couple(net, X)
    made = apply_plan(net, coupling.plan({group.name: range(1, 6) for group in coupling.groups if group.size == 6}))
    assert made.a.out_features == 10
    torch.compiler.reset()  # what another test has compiled
    return made


@pytest.mark.parametrize("held", [False, True])
def test_torch_compile_runs_it_as_it_is(cut: nn.Module, held: bool) -> None:
    net = Holder(cut) if held else cut
    assert torch.equal(torch.compile(net, backend="eager")(X), net(X))


def test_torch_compile_in_one_graph_says_why_not(cut: nn.Module) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="its program states sizes that pruning replaces"):
        torch.compile(Holder(cut), backend="eager", fullgraph=True)(X)


@pytest.mark.parametrize("held", [False, True])
def test_torch_fx_is_refused_and_capture_and_export_are_not(cut: nn.Module, held: bool) -> None:
    net = Holder(cut) if held else cut
    with pytest.raises(SizeError, match="Halves: sizes that its program states .* frontend=.export"):
        torch.fx.symbolic_trace(net)
    torch.testing.assert_close(capture(net, X, frontend="export")(X), net(X))
    torch.testing.assert_close(torch.export.export(net, (X,)).module()(X), net(X))


def test_torch_fx_takes_it_as_a_leaf(cut: nn.Module) -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Halves) or super().is_leaf_module(m, module_qualified_name)

    net = Holder(cut)
    assert torch.equal(torch.fx.GraphModule(net, Leaves().trace(net))(X), net(X))


def replica(net: nn.Module) -> nn.Module:
    """Of weights that are zero, made as `torch.nn.parallel.replicate` makes one for each GPU."""
    made = net._replicate_for_data_parallel()
    made._parameters = {name: torch.zeros_like(tensor) for name, tensor in net.named_parameters(recurse=False)}
    made._modules = {name: None if part is None else replica(part) for name, part in net._modules.items()}
    return made


def test_a_replica_runs_on_its_own_weights(cut: nn.Module) -> None:
    assert not replica(cut)(X).any() and cut(X).any()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.branch(x))


def test_a_replica_and_a_compiled_module_without_a_branch_do_as_well() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), Block()).eval()
    coupling = couple(net, X, depth=True)
    shorter = apply_plan(net, coupling.plan({}, removed_blocks=list(coupling.blocks)))
    assert shorter[1].branch is None
    torch.compiler.reset()
    assert torch.equal(torch.compile(shorter, backend="eager")(X), shorter(X))
    assert not replica(shorter)(X).any() and shorter(X).any()
