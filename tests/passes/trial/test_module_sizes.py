"""Sizes that a module keeps or writes outside its tensors follow: attributes, literals, positions, scales."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from module_law import halves, proven
from torch import Tensor, nn

from passes import EquivalenceError, apply_plan, couple, verify
from passes.trial.following import Following


class Heads(nn.Module):
    """Attention of grouped queries, as decoders have it: every size of the example is met more than once."""

    def __init__(self, dim: int = 24, heads: int = 4, pairs: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim, self.repeats = heads, dim // heads, heads // pairs
        self.q, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = nn.Linear(dim, pairs * self.head_dim), nn.Linear(dim, pairs * self.head_dim)

    def repeated(self, x: Tensor, repeats: int) -> Tensor:
        n, pairs, length, size = x.shape
        if repeats == 1:
            return x
        return x[:, :, None].expand(n, pairs, repeats, length, size).reshape(n, pairs * repeats, length, size)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = self.repeated(k, self.repeats), self.repeated(v, self.repeats)
        weights = torch.softmax(q @ k.transpose(2, 3) * self.head_dim**-0.5, -1)
        return self.o((weights @ v).transpose(1, 2).reshape(*x.shape[:-1], -1))


def test_attributes_follow_where_all_sizes_look_alike() -> None:
    net = nn.Sequential(nn.Linear(5, 24), Heads(), Heads(), nn.Linear(24, 3))
    cut, coupling, certificate = proven(net, torch.randn(2, 7, 5))
    assert sorted(g.size for g in coupling.groups) == [2, 2, 2, 2, 6, 6, 6, 6, 24, 24, 24]
    assert cut[1].head_dim == 3 and cut[1].repeats == 1 and cut[2].head_dim == 3
    assert len(certificate.batch_sizes) > 1 and any("length" in size for size in certificate.sizes)
    assert coupling.module is not None
    assert {edit.attribute for edit in coupling.module.edits} == {("head_dim",), ("repeats",)}


class Checked(Heads):
    """Asks for values, and makes calls in single precision that are none in a network of that precision."""

    def forward(self, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise ValueError("not finite")
        return super().forward(torch.softmax(x, -1, dtype=torch.float32).to(x.dtype))


def test_attributes_follow_where_the_program_asks_for_values() -> None:
    net = nn.Sequential(nn.Linear(5, 7), Checked(), nn.Linear(24, 3))
    net[1].q, net[1].k, net[1].v = nn.Linear(7, 24), nn.Linear(7, 12), nn.Linear(7, 12)
    cut, coupling, _ = proven(net, torch.randn(2, 7, 5))
    assert sorted(g.size for g in coupling.groups) == [2, 2, 6, 6, 24], "heads, their repeats, two sizes, o"
    assert cut[1].head_dim == 3 and cut[1].repeats == 1


class PairOfHeads(nn.Module):
    """Two heads by einsum, which puts a dimension of one elsewhere than one of two."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.merge = 2, nn.Linear(16, 48), nn.Linear(16, 16)
        self.near = nn.Parameter(torch.randn(7, 7, 8))

    def forward(self, x: Tensor) -> Tensor:
        n, windows, length, width = x.shape
        shape = (n, windows, length, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).permute(0, 1, 3, 2, 4) for part in self.qkv(x).chunk(3, -1))
        near = torch.einsum("nwhid, ijd -> nwhij", q, self.near)
        weights = torch.softmax(torch.einsum("nwhid, nwhjd -> nwhij", q, k) + near, -1)
        mixed = torch.einsum("nwhij, nwhjd -> nwhid", weights, v)
        return self.merge(mixed.permute(0, 1, 3, 2, 4).reshape(n, windows, length, width))


def test_a_head_that_is_left_alone_is_followed_through_einsum() -> None:
    net = nn.Sequential(nn.Linear(5, 16), PairOfHeads(), nn.Linear(16, 3))
    proven(net, torch.randn(2, 3, 7, 5), "0 16, 1.qkv 8, 1.qkv#2 2, 1.qkv#3 8, 1.merge 16")


class Configured(nn.Module):
    """Sizes in a configuration object that others share, in a list and in a property."""

    @dataclass
    class Config:
        width: int = 12
        heads: int = 3

    def __init__(self) -> None:
        super().__init__()
        self.config, self.sizes = self.Config(), [4, 8]
        self.fused, self.out = nn.Linear(6, 12), nn.Linear(12, 5)

    @property
    def head_dim(self) -> int:
        return self.config.width // self.config.heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.fused(x)
        a, b = x.split(self.sizes, -1)
        x = torch.cat([torch.tanh(a), b], -1)
        return self.out(x.view(*x.shape[:-1], self.config.heads, self.head_dim).flatten(-2) * 2)


def test_configurations_are_not_shared_with_the_original() -> None:
    net = Configured()
    cut, _, _ = proven(net, torch.randn(3, 7, 6))
    assert net.config == Configured.Config() and net.sizes == [4, 8]
    assert sum(cut.sizes) == cut.fused.out_features < 12


class Middle(nn.Module):
    """Between two convolutions of 8 channels what the row is about."""

    def __init__(self, middle, width: int = 8, joined: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(joined, 5, 3)
        self.middle = middle
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 4, 6, 5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.middle(self, torch.relu(self.conv1(x))))


MIDDLES = {
    "view": (lambda self, x: x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape), 8, "conv1 2, conv1#2 4"),
    "chunk": (lambda self, x: torch.cat(x.chunk(2, 1)[::-1], 1), 8, "conv1 4, conv1#2 4"),
    "inner": (lambda self, x: x[:, 2:-1], 5, "conv1 2, conv1#2 5"),
    "one channel": (lambda self, x: x * torch.sigmoid(x[:, 3:4]), 8, "conv1 3, conv1#2 4"),
    "narrow": (lambda self, x: x.narrow(1, 1, 3) + x.narrow(1, 5, 3), 3, "conv1 3"),
    "roll": (lambda self, x: torch.roll(x, 3, 1), 8, "conv1 5, conv1#2 3"),
    "pad": (lambda self, x: F.pad(x, (0, 0, 0, 0, -2, 0)), 6, "conv1 2, conv1#2 6"),
    "tensor_split": (lambda self, x: torch.cat(x.tensor_split((2, 5), 1)[::-1], 1), 8, "conv1 2, conv1#2 3, conv1#3 3"),
    "in place": (lambda self, x: (x := x.clone(), x[:, 2:6].mul_(0.5), x)[2], 8, "conv1 2, conv1#2 4, conv1#3 2"),
    "list": (lambda self, x: x[:, [3, 1, 0, 2, 7, 4, 6, 5]], 8, "conv1 8"),
    "buffer": (lambda self, x: x[:, self.order], 8, "conv1 8"),
    "index_select": (lambda self, x: x.index_select(1, torch.tensor([0, 4, 2])), 3, "conv1 3, conv1#2 5"),
    "there and back": (lambda self, x: x[:, self.order][:, self.order.argsort()], 8, "conv1 8"),
    "scale by sqrt": (lambda self, x: x / math.sqrt(x.shape[1]), 8, "conv1 8"),
    "scale by tensor": (lambda self, x: x / torch.tensor(float(x.shape[1])), 8, "conv1 8"),
    "zeros": (lambda self, x: x + torch.zeros(x.shape[0], 8, 1, 1), 8, "conv1 8"),
    "reversed": (lambda self, x: x[:, torch.arange(x.shape[1] - 1, -1, -1)], 8, "conv1 8"),
    "even, then odd": (lambda self, x: x[:, torch.arange(x.shape[1]).remainder(2).argsort(stable=True)], 8, "conv1 8"),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_literals_follow(name: str) -> None:
    middle, joined, groups = MIDDLES[name]
    net = Middle(middle, joined=joined)
    cut, coupling, certificate = proven(net, torch.randn(2, 3, 8, 8))
    found = ", ".join(f"{g.name} {g.size}" for g in coupling.groups)
    assert found == groups
    assert len(certificate.batch_sizes) > 1
    x = torch.randn(4, 3, 8, 8)
    assert cut(x).shape == net(x).shape


class FoldedHeads(nn.Module):
    """Heads folded into the batch: one number holds a size that is free and one that is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        split = (part.reshape(n, length, 3, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k, v = (part.reshape(n * 3, length, 4) for part in split)
        y = torch.softmax(q @ k.mT * 0.5, -1) @ v
        return self.out(y.view(n, 3, length, 4).transpose(1, 2).reshape(n, length, 12))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_number_that_holds_the_batch_too_is_scaled(batch: int) -> None:
    net = FoldedHeads()
    cut, _, certificate = proven(net, torch.randn(batch, 7, 12))
    assert len(certificate.batch_sizes) > 1
    assert cut(torch.randn(5, 3, 12)).shape == (5, 3, 5)


class DefaultScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.out = nn.Linear(6, 27), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, 3).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_the_default_scale_stays() -> None:
    _, coupling, _ = proven(DefaultScale(), torch.randn(2, 7, 6))
    assert [g.size for g in coupling.groups] == [3, 3]


@pytest.mark.parametrize("flags", [True, False])
def test_a_mask_of_flags_is_a_mask(flags: bool) -> None:
    class Masked(DefaultScale):
        def forward(self, x: Tensor) -> Tensor:
            n, length, _ = x.shape
            q, k, v = self.qkv(x).view(n, length, 3, self.heads, 3).permute(2, 0, 3, 1, 4)
            mask = torch.ones(length, length).tril()
            mask = mask.bool() if flags else mask.log()
            return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    proven(Masked(), torch.randn(2, 7, 6))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 16)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state)


def test_a_state_of_zeros_follows() -> None:
    cut, _, _ = proven(Cell(), torch.randn(2, 5, 6), "cell 16")
    assert cut.cell.hidden_size == 8


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_make_their_own_zeros(kind: type[nn.Module]) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(6, 10, batch_first=True), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0])

    cut, _, _ = proven(Read(), torch.randn(2, 5, 6), "rnn 10")
    assert cut.rnn.hidden_size == 5


class Folded(nn.Module):
    """A view whose copies are made from what it was given, as einops' layers are: the number of heads is kept twice."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.given = {"heads": heads}
        self.lengths = tuple(self.given.items())

    def __getstate__(self) -> dict[str, int]:
        return self.given

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        heads = dict(self.lengths)["heads"]
        return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads).softmax(-1).flatten(2)


def test_a_layer_that_its_copies_rebuild_has_the_new_size_in_them_too() -> None:
    net = nn.Sequential(nn.Linear(5, 24), Folded(4), nn.Linear(24, 20), Folded(4), nn.Linear(20, 3))
    cut, coupling, _ = proven(net, torch.randn(2, 7, 5))
    assert sorted(g.size for g in coupling.groups) == [4, 4]
    for part in (cut[1], copy.deepcopy(cut)[1], pickle.loads(pickle.dumps(cut))[3]):
        assert part.lengths == (("heads", 2),)


def test_a_stored_size_of_a_view_layer_follows() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (8, 1)), nn.Flatten(), nn.Linear(8, 3))
    cut, _, _ = proven(net, torch.randn(2, 6), "0 8")
    assert cut[1].unflattened_size == (4, 1)


def test_positions_that_an_input_uses_as_many_of_as_it_is_long_stay() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Parameter(torch.randn(9, 12)), nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + self.table[: x.shape[1]])

    cut, _, _ = proven(Positions(), torch.randn(2, 7, 5), "a 12")
    assert cut.table.shape == (9, 6)
    assert cut(torch.randn(3, 9, 5)).shape == (3, 9, 3)


class _Broken(Following):
    """A wrong rule: positions are not compared."""

    def _compare_positions(self, *args) -> None:
        pass


def test_the_proof_sees_positions_that_were_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.trial.module_trial.Following", _Broken)
    net = Middle(MIDDLES["roll"][0]).eval()
    inputs = torch.randn(2, 3, 8, 8)
    coupling = couple(net, inputs)
    plan = coupling.plan(halves(coupling))
    with pytest.raises(EquivalenceError, match="roll"):
        verify(net, apply_plan(net, plan), plan, inputs)


class Classifier(nn.Module):
    """Keeps the width of its features for later, as timm's networks do, and one that only looks alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(6, 16), nn.Linear(16, 3)
        self.num_features, self.epochs = 16, 40

    def reset_classifier(self, classes: int) -> None:
        self.fc = nn.Linear(self.num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.stem(x)))


def test_a_size_that_forward_never_reads_follows_its_own_layers() -> None:
    cut, _, _ = proven(Classifier(), torch.randn(2, 6), "stem 16")
    assert (cut.num_features, cut.epochs) == (8, 40)
    cut.reset_classifier(5)
    assert cut(torch.randn(2, 6)).shape == (2, 5)


class Halved(nn.Module):
    """A chunk into two halves, which are pruned apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 32), nn.Linear(16, 6), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.left(a.relu()) + self.right(b.tanh())


@pytest.mark.parametrize(("left", "right"), [(9, 8), (8, 9), (3, 11)])
def test_halves_of_a_chunk_have_widths_of_their_own(left: int, right: int) -> None:
    net, x = Halved().eval(), torch.randn(3, 4)
    coupling = couple(net, x)
    halves = [group.name for group in coupling.groups if group.size == 16]
    plan = coupling.plan({name: range(width) for name, width in zip(halves, (left, right), strict=True)})
    verify(net, apply_plan(net, plan), plan, x)


class Thirds(nn.Module):
    """A chunk whose pieces are alike at the widths of both trials, and at others are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.product, self.rest = nn.Linear(4, 24), nn.Linear(6, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = self.first(x).chunk(3, 1)
        return a[:, :2] + b[:, :2], self.product(a[:, 2:] * b[:, 2:]) + self.rest(c.relu())


@pytest.mark.parametrize(("product", "rest"), [(5, 5), (4, 6), (2, 7), (5, 3)])
def test_thirds_of_a_chunk_have_widths_of_their_own(product: int, rest: int) -> None:
    net, x = Thirds().eval(), torch.randn(3, 4)
    coupling = couple(net, x)
    assert sorted(coupling.widths.values()) == [6, 8]
    widths = {6: product, 8: rest}
    plan = coupling.plan({name: range(widths[size]) for name, size in coupling.widths.items()})
    verify(net, apply_plan(net, plan), plan, x)


class OrderByWidths(nn.Module):
    """Calls in one order where two widths are alike, and in another where they are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x), self.b(x)
        if left.shape[-1] == right.shape[-1]:
            left, right = left * 2, right.tanh()
        else:
            right, left = right.tanh(), left * 2
        return self.c(left) + self.d(right)


def test_calls_may_come_in_another_order_where_widths_are_no_longer_alike() -> None:
    proven(OrderByWidths(), torch.randn(2, 6), "a 16, b 16")


class RepeatedByWidths(Heads):
    """Heads are repeated by attention itself, which converts first, or before it where keys and values differ."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        alike = k.shape[-1] == v.shape[-1]
        if not alike:
            k, v = self.repeated(k, self.repeats), self.repeated(v, self.repeats)
        attended = F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=alike)
        return self.o(attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_conversion_may_come_before_or_after_heads_are_repeated(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(5, 24), RepeatedByWidths(heads=8), nn.Linear(24, 3)).to(dtype)
    _, coupling, _ = proven(net, torch.randn(2, 7, 5, dtype=dtype))
    assert sorted(coupling.widths.values()) == [2, 3, 3, 4, 24, 24], "heads, their repeats, two sizes, two layers"


class RepeatedForOddSizes(Heads):
    """Reads the number of repeats only where keys and values differ in size, as attention of a library may.

    One table of angles turns the halves of all layers' queries and keys: their sizes come in pairs.
    """

    def __init__(self) -> None:
        super().__init__(64, 4, 2)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * angles.sin() + t for t in (q, k))
        grouped = k.shape[-1] == v.shape[-1]
        if not grouped:
            k, v = self.repeated(k, self.repeats), self.repeated(v, self.repeats)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.25, enable_gqa=grouped)
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Turned(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(5, 64), nn.Linear(64, 3)
        self.layers = nn.ModuleList(RepeatedForOddSizes() for _ in range(layers))
        self.register_buffer("rates", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[1]), self.rates)
        angles, x = torch.cat([angles, angles], -1), self.start(x)
        for layer in self.layers:
            x = x + layer(x, angles)
        return self.end(x)


def test_each_of_many_layers_follows_whichever_way_its_sizes_lead_when_tried() -> None:
    net, x = Turned(3), torch.randn(2, 7, 5)
    coupling = couple(net, x)
    middle = [name for name in coupling.variables if name.startswith("layers.1.")]
    assert len(middle) == 3
    for first, second in itertools.combinations(middle, 2):
        plan = coupling.plan({name: range(coupling.widths[name] // 2) for name in (first, second)})
        assert verify(net, apply_plan(net, plan), plan, x).max_error < 1e-9, (first, second)


class Quotients(nn.Module):
    """Attention of one token, whose head sizes are quotients: cut by half, they are what they were."""

    def __init__(self, dim: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.temperature = heads, nn.Parameter(torch.ones(heads))
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, length, size = x.shape
        temperature = self.temperature.view(self.num_heads, 1, 1)
        q = self.q(x[:, 0]).reshape(n, self.num_heads, 1, size // self.num_heads)
        k = self.k(x).reshape(n, length, self.num_heads, size // self.num_heads).permute(0, 2, 1, 3)
        v = self.v(x).reshape(n, length, self.num_heads, size // self.num_heads).permute(0, 2, 1, 3)
        weights = (q @ k.transpose(-2, -1) * temperature).softmax(-1)
        mixed = self.proj((weights @ v).transpose(1, 2).reshape(n, 1, size))
        return torch.cat([mixed, x[:, 1:]], 1)


def test_a_quotient_of_sizes_follows_whatever_else_is_cut() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 128), Quotients(), nn.Linear(128, 3))
    x = torch.randn(2, 7, 5)
    coupling = couple(net, x)
    heads = next(name for name, width in coupling.widths.items() if width == 4 and name != "0")
    for width in (1, 2, 3):
        plan = coupling.plan({heads: range(width)})
        assert verify(net, apply_plan(net, plan), plan, x).max_error < 1e-9
