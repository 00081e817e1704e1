"""A width that enters a network's values as a number keeps the value that it had, whatever it passes through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import PruneChannels, apply_plan, capture, couple, verify

Use = Callable[[Tensor, Tensor, int], Any]


class Correlation(nn.Module):
    """A product over channels, of which `use` makes something together with their number."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3), use

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        n, d, h, w = a.shape
        return self.use(a.view(n, d, h * w).transpose(1, 2) @ b.view(n, d, h * w), a, d)


def written(c: Tensor, a: Tensor, d: int) -> Tensor:
    y = torch.zeros_like(c)
    y[:, 0] = d
    return c + y


USES: dict[str, Use] = {
    "a tensor": lambda c, a, d: c / torch.sqrt(torch.tensor(d).float()),
    "a tensor of two": lambda c, a, d: c / torch.tensor([d, a.shape[2]]).sum(),
    "as_tensor": lambda c, a, d: c / torch.as_tensor(d, dtype=a.dtype) ** 0.5,
    "new_tensor": lambda c, a, d: c / a.new_tensor(d).sqrt(),
    "a shape": lambda c, a, d: c / torch.tensor(a.shape).sum(),
    "full": lambda c, a, d: c / torch.full((1,), d, dtype=a.dtype),
    "new_full": lambda c, a, d: c / a.new_full((1,), d),
    "full_like": lambda c, a, d: c + torch.full_like(c, d),
    "fill_": lambda c, a, d: c + torch.zeros_like(c).fill_(d),
    "written": written,
    "a power": lambda c, a, d: c * d**-0.5,
    "a root": lambda c, a, d: c / math.sqrt(a.size(1)),
    "a half": lambda c, a, d: c / (d // 2),
    "a length": lambda c, a, d: c / len(a[0]),
    "in place": lambda c, a, d: c.mul_(d),
    "chosen": lambda c, a, d: torch.where(c > 0, c, d),
    "a bound": lambda c, a, d: c.clamp(max=d),
    "a slope": lambda c, a, d: F.leaky_relu(c, 1 / d),
    "an epsilon": lambda c, a, d: F.layer_norm(c, (c.shape[-1],), eps=1 / d),
    "a padding's value": lambda c, a, d: F.pad(c, (1, 1), value=d),
    "a diagonal": lambda c, a, d: c.tril(d),
    "a keyword": lambda c, a, d: torch.add(c, c, alpha=d),
    "a weight": lambda c, a, d: torch.lerp(c, 2 * c, d),
    "attention's scale": lambda c, a, d: F.scaled_dot_product_attention(a.flatten(2).mT, a.flatten(2).mT, c),
    "numbers up to it": lambda c, a, d: c + torch.arange(d).sum(),
    "an output": lambda c, a, d: (c, d),
    "with a free size": lambda c, a, d: c / (d * a.shape[2]),
    "a root with a free size": lambda c, a, d: c / math.sqrt(d + a.shape[-1]),
    "all elements": lambda c, a, d: c / a.numel(),
    "a shape's elements": lambda c, a, d: c / a.size()[1:].numel(),
    "a free size returned": lambda c, a, d: (c, d * a.shape[2]),
    "a step": lambda c, a, d: c / a.stride()[0],
}


@pytest.mark.parametrize("use", USES)
def test_the_old_value_stays_at_every_size(use: str) -> None:
    model, x = Correlation(USES[use]).double().eval(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    gm = capture(model, x)
    coupling = couple(gm, x)
    assert coupling.groups
    plan = coupling.plan({group.name: tuple(range(0, group.size, 2)) for group in coupling.groups})
    certificate = verify(gm, PruneChannels(plan)(gm).graph_module, plan, x)
    assert certificate.batch_sizes == (1, 3) and len(certificate.sizes) == 4, "both lengths, shorter ones and the batch"


@torch.library.custom_op("fxprune_tests::first_half", mutates_args=())
def first_half(x: Tensor, size: int) -> Tensor:
    """The first half of the channels, whose number the caller gives."""
    return x[:, : size // 2].clone()


@first_half.register_fake
def _(x: Tensor, size: int) -> Tensor:
    return x.new_empty(x.shape[0], size // 2, *x.shape[2:])


def test_a_number_of_an_unknown_operator_is_no_reason_to_fail() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(torch.ops.fxprune_tests.first_half(y, y.shape[1]))

    x = torch.randn(2, 3, 5, 5)
    assert couple(capture(Net().eval(), x), x).groups == ()


@pytest.mark.parametrize(
    "number",
    [
        lambda y: min(y.shape[2], y.shape[1]),
        lambda y: y[0].numel(),
        lambda y: y.shape[1] * y.shape[2] / 192,
        lambda y: y.shape[2] + y.shape[0],
    ],
)
def test_a_number_of_a_width_and_of_an_inputs_size_cannot_be_kept(number: Callable[[Tensor], float]) -> None:
    """The number of the example's sizes would be wrong at all others, whatever is cut."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            return self.c(torch.relu(self.b(y / number(y))))

    net, x = Scaled().eval(), torch.randn(2, 8, 6)
    coupling = couple(net, x)
    assert coupling.widths == {"b": 8}
    plan = coupling.plan({"b": (0, 3, 4)})
    certificate = verify(net, apply_plan(net, plan), plan, x)
    assert {"length 16 instead of 8", "batch of 3 instead of 2"} <= set(certificate.inputs)


def test_a_number_is_not_kept_where_no_width_moves_any_longer() -> None:
    """What was found for groups that had to stay later is left out: an empty plan changes nothing."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            return self.b(y * (3 if y.element_size() * y.numel() > 1000 else 1))

    net, x = Chosen().eval(), torch.randn(2, 8, 6)
    coupling = couple(net, x)
    assert not coupling.widths
    same = apply_plan(net, coupling.plan({}))
    assert torch.equal(same(x[:, :4]), net(x[:, :4])) and verify(net, same, coupling.plan({}), x).max_error == 0


def by_length(y: Tensor, place: int) -> Tensor:
    return torch.cat([y[..., : y.shape[1]] * 2, y[..., y.shape[1] :]], -1)


def by_batch(y: Tensor, place: int) -> Tensor:
    return torch.cat([y[..., : y.shape[0]] * 2, y[..., y.shape[0] :]], -1)


def by_argument(y: Tensor, place: int) -> Tensor:
    return y * y[..., place : place + 1]


def by_half(y: Tensor, place: int) -> Tensor:
    return torch.cat([y[..., : y.shape[-1] // 2] * 2, y[..., y.shape[-1] // 2 :]], -1)


@pytest.mark.parametrize("cut", [by_length, by_batch, by_argument, by_half])
def test_units_that_are_cut_where_an_inputs_size_or_an_argument_says_stay(cut: Callable[[Tensor, int], Tensor]) -> None:
    class Cutting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, place: int = 3) -> Tensor:
            return self.c(torch.relu(self.b(cut(torch.relu(self.a(x)), place))))

    net = Cutting().eval()
    coupling = couple(net, torch.randn(2, 8, 6))
    assert coupling.widths == ({"a": 8, "a#2": 8, "b": 8} if cut is by_half else {"b": 8})
