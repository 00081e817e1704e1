"""Numbers in a line that runs for several layers, each cut in its own way: every call gets those of its layer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from passes import Plan, apply_plan, couple, verify
from passes.errors import SizeError
from passes.stream.restated_calls import Restated, RestatedForward, Site

ORDERS = {"all": (0, 1, 2), "one left out": (0, 2), "the first left out": (1, 2), "turned": (2, 0, 1)}
ORDERS |= {"twice": (0, 1, 2, 0, 1, 2), "none": ()}


class Swapped(nn.Module):
    """Swaps the halves of what each layer gives, and has the layers run in the order of `order`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(6, 12) for _ in range(3))
        self.b = nn.ModuleList(nn.Linear(12, 6) for _ in range(3))
        self.order: Sequence[int] = (0, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        for i in self.order:
            h = self.a[i](x)
            x = x + self.b[i](torch.cat([h[:, 6:].tanh() * 2, h[:, :6]], 1))
        return x


class Checkpointed(Swapped):
    """A method of it runs again in backward."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b[0](checkpoint(self.halves, self.a[0](x), use_reentrant=True))

    def halves(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, 6:].tanh() * 2, h[:, :6]], 1)


def pruned(net: nn.Module) -> tuple[nn.Module, nn.Module, Plan]:
    """The masked original, the cut network, and the plan: the halves of each layer keep other units."""
    x = torch.randn(2, 6, dtype=torch.float64)
    coupling = couple(net, x)
    halves = [group for group in coupling.groups if group.size == 6]
    plan = coupling.plan({g.name: range(n % 2, 6 - (n + 1) % 3) for n, g in enumerate(halves)})
    cut = apply_plan(net, plan)
    assert verify(net, cut, plan, x).max_error < 1e-12
    with torch.no_grad():
        for group in halves:
            gone = [unit for unit in range(6) if unit not in plan.keep[group.name]]
            for where in group.slices:
                net.get_parameter(where.tensor).index_fill_(where.dim, torch.from_numpy(where.index[gone].ravel()), 0)
    return net, cut, plan


def made(kind: type[Swapped]) -> Swapped:
    torch.manual_seed(0)
    net = kind().double().eval()
    for layer in net.b:
        nn.init.normal_(layer.weight)
    return net


@pytest.mark.parametrize("order", ORDERS)
def test_layers_that_are_left_out_turned_or_run_again_have_their_own_sizes(order: str) -> None:
    masked, cut, _ = pruned(made(Swapped))
    assert [layer.out_features for layer in cut.a] != [cut.a[0].out_features] * 3
    masked.order = cut.order = ORDERS[order]
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(cut(x), masked(x), rtol=1e-12, atol=1e-12)


def test_a_call_that_was_never_seen_is_an_error_that_names_its_line() -> None:
    class Doubled(Swapped):
        again = False

        def forward(self, x: Tensor) -> Tensor:
            for a, b in zip(self.a, self.b, strict=True):
                h = a(x)
                for _ in range(1 + self.again):
                    p = h[:, 6:]
                x = x + b(torch.cat([p.tanh(), h[:, :6]], 1))
            return x

    masked, cut, _ = pruned(made(Doubled))
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(cut(x), masked(x), rtol=1e-12, atol=1e-12)
    cut.again = True
    with pytest.raises(SizeError, match=r"forward, 4 lines below its head, calls torch.Tensor.__getitem__ behind a\.0"):
        cut(x)


def test_a_method_that_runs_again_in_backward_finds_the_layer_before_it() -> None:
    masked, cut, _ = pruned(made(Checkpointed))
    grads = []
    for net in (masked, cut):
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6).requires_grad_()
        net(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


class Recursive(nn.Module):
    def forward(self, x: Tensor, left: int = 1) -> Tensor:
        x = x.view(-1, 16)
        return self.forward(x, left - 1) if left else x


def test_a_forward_that_calls_itself_replaces_each_number_once() -> None:
    net = Recursive()
    site = Site("torch.Tensor.view", "forward", 1)
    net.forward = RestatedForward(net, [Restated(site, (2,), 8, ratio=(4, 8), before=8)])  # type: ignore[method-assign,assignment]
    assert net(torch.zeros(4, 8)).shape == (4, 8)
