"""Attention modules opened at capture: same outputs, weights and names; heads only in literals that can be restated."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes.frontend.choose import capture

HEADS, HEAD_DIM, WIDTH = 3, 4, 12
N, L, S = 2, 5, 7


class Attention(nn.Module):
    """One call of nn.MultiheadAttention, with whatever arguments, returning what `show` says."""

    def __init__(self, show: str = "output", **settings: Any) -> None:
        super().__init__()
        self.show = show
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **settings)
        for parameter in self.inner.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, **named: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        key = query if key is None else key
        output, weights = self.inner(query, key, key if value is None else value, **named)
        return output if self.show == "output" else (output, weights)


class Bound(nn.Module):
    """`module` with some arguments fixed by name, the others in the order of `names`."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], **fixed: Any) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.fixed = fixed

    def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, d: Tensor | None = None) -> Any:
        return self.module(**dict(zip(self.names, (a, b, c, d), strict=False)), **self.fixed)


def rand(*sizes: int) -> Tensor:
    return torch.rand(*sizes, dtype=torch.float64)


def check(model: nn.Module, *inputs: Tensor, example: bool = True) -> fx.GraphModule:
    """Equal outputs in eval and, dropout being off, in train mode; and gradients reach every parameter."""
    gm = capture(model, inputs if example else None)
    gm.graph.lint()
    for mode in (False, True):
        expected = copy.deepcopy(model).train(mode)(*inputs)
        actual = gm.train(mode)(*inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    output = gm(*inputs)
    (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
    assert {name for name, p in gm.named_parameters() if p.grad is None} == set()
    assert set(gm.state_dict()) == set(model.state_dict())
    assert not any(isinstance(module, nn.MultiheadAttention) for module in gm.modules())
    return gm


def sizes(batch_first: bool, *shape: int) -> tuple[int, ...]:
    return shape if batch_first else (shape[1], shape[0], *shape[2:])


SETTINGS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 5, "vdim": 6, "batch_first": True},
    {"kdim": 5, "vdim": 6},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"add_bias_kv": True, "batch_first": True},
    {"add_zero_attn": True, "batch_first": True, "kdim": 12, "vdim": 6, "bias": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weights", ["none", "unused", "averaged", "by head"])
def test_cross_attention(settings: dict[str, Any], weights: str) -> None:
    first = bool(settings.get("batch_first"))
    show = "both" if weights in ("averaged", "by head") else "output"
    model = Bound(
        Attention(show, **settings),
        ("query", "key", "value"),
        need_weights=weights != "none",
        average_attn_weights=weights != "by head",
    )
    key, value = (rand(*sizes(first, N, S, settings.get(dim, WIDTH))) for dim in ("kdim", "vdim"))
    check(model, rand(*sizes(first, N, L, WIDTH)), key, value)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("which", ["attn", "heads", "padding", "both", "causal"])
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["plain", "extra rows"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_masks(batch_first: bool, kind: str, which: str, extra: dict[str, Any], need_weights: bool) -> None:
    blocked = torch.ones(L, L).triu(1).bool() if which == "causal" else torch.rand(L, L) > 0.7
    blocked = blocked & ~torch.eye(L, dtype=torch.bool)
    if which == "heads":
        blocked = blocked.expand(N * HEADS, L, L) & (torch.rand(N * HEADS, L, L) > 0.5)
    padding = torch.tensor([[False] * L, [False] * (L - 2) + [True] * 2])
    masks = {
        "attn_mask": blocked if which != "padding" else None,
        "key_padding_mask": padding if which in ("padding", "both") else None,
    }
    given = {name: mask for name, mask in masks.items() if mask is not None}
    if kind == "float":
        given = {name: torch.zeros_like(m, dtype=torch.float64).masked_fill(m, -torch.inf) for name, m in given.items()}
    fixed = {"need_weights": need_weights} | ({"is_causal": True} if which == "causal" else {})
    model = Bound(Attention(batch_first=batch_first, **extra), ("query", *given), **fixed)
    gm = check(model, rand(*sizes(batch_first, N, L, WIDTH)), *given.values())
    assert any(node.target is F.scaled_dot_product_attention for node in gm.graph.nodes)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input_takes_the_same_graph(batch_first: bool) -> None:
    model = Attention(batch_first=batch_first)
    gm = check(model, rand(*sizes(batch_first, N, L, WIDTH)), example=False)
    x = rand(L, WIDTH)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-10, atol=1e-12)


def test_heads_stand_in_literals_and_the_scale_is_pinned() -> None:
    gm = capture(Attention(batch_first=True))
    sizes = [node.args[-1] for node in gm.graph.nodes if node.target == "unflatten"]
    assert sizes == [(HEADS, HEAD_DIM)] * 3
    (attention,) = (node for node in gm.graph.nodes if node.target is F.scaled_dot_product_attention)
    assert attention.kwargs["scale"] == HEAD_DIM**-0.5
    assert sum(node.target is F.linear for node in gm.graph.nodes) == 1


def test_weights_that_nobody_uses_cost_nothing() -> None:
    targets = [node.target for node in capture(Attention("output")).graph.nodes]
    assert F.softmax not in targets and F.scaled_dot_product_attention in targets
    targets = [node.target for node in capture(Attention("both")).graph.nodes]
    assert F.softmax in targets and F.scaled_dot_product_attention not in targets


@pytest.mark.parametrize("show", ["output", "both"])
def test_dropout_follows_the_mode(show: str) -> None:
    model = Attention(show, dropout=0.5).eval()
    gm = capture(model)
    x = rand(L, N, WIDTH)
    assert torch.equal(_first(gm(x)), _first(gm(x)))
    torch.testing.assert_close(gm(x), model(x), rtol=1e-10, atol=1e-12)
    gm.train()
    assert not torch.equal(_first(gm(x)), _first(gm(x)))
    assert not model.training


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


LAYER = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 10, "dropout": 0.0, "dtype": torch.float64}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("norm_first", "activation", "batch_first"),
    list(itertools.product([False, True], ["gelu", nn.ELU()], [False, True])),
)
def test_transformer_layers(norm_first: bool, activation: Any, batch_first: bool) -> None:
    settings = {**LAYER, "norm_first": norm_first, "activation": activation, "batch_first": batch_first}
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    source, target = rand(*sizes(batch_first, N, S, WIDTH)), rand(*sizes(batch_first, N, L, WIDTH))
    check(nn.TransformerEncoderLayer(**settings), source)
    layer = nn.TransformerEncoderLayer(**settings)
    check(nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH, dtype=torch.float64), enable_nested_tensor=False), source)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**settings), 2)
    check(decoder, target, source)
    check(Bound(decoder, ("tgt", "memory", "tgt_mask"), tgt_is_causal=True), target, source, causal)
    check(Bound(decoder, ("tgt", "memory", "tgt_mask")), target, source, causal)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_transformer() -> None:
    model = nn.Transformer(WIDTH, HEADS, 2, 2, 10, dropout=0.0, batch_first=True, norm_first=True, dtype=torch.float64)
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[1, -2:] = True
    names = ("src", "tgt", "src_key_padding_mask", "memory_key_padding_mask")
    check(Bound(model, names), rand(N, S, WIDTH), rand(N, L, WIDTH), padding, padding)


def test_a_subclass_that_overrides_a_block_is_honoured() -> None:
    class Gated(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return super()._ff_block(x) * 2

    check(Gated(**LAYER), rand(L, N, WIDTH))


class TwoLayers(nn.Module):
    """What symbolic_trace leaves as leaves, with a later node of a name that opening them wants."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(**LAYER)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64)
        self.weight = nn.Parameter(rand(6, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer(x)
        y, weights = self.attention(x, x, x)
        return F.linear(x + y, self.weight), weights


def test_leaves_of_a_given_graph_are_opened_and_other_nodes_kept() -> None:
    given = fx.symbolic_trace(TwoLayers())
    for node in given.graph.nodes:
        node.meta["mark"] = node.name
    names = [node.name for node in given.graph.nodes if node.name not in ("layer", "attention")]
    code = given.code
    gm = check(given, rand(L, N, WIDTH))
    kept = [node.name for node in gm.graph.nodes if node.meta.get("mark") == node.name]
    assert set(names) - set(kept) <= {"getitem", "getitem_1", "output"}
    assert given.code == code and isinstance(given.attention, nn.MultiheadAttention)
    x = rand(L, N, WIDTH)
    torch.testing.assert_close(pickle.loads(pickle.dumps(gm))(x), gm(x))


def test_torch_has_its_own_forwards_back_after_a_failure() -> None:
    forward = nn.MultiheadAttention.forward

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        capture(Failing(), frontend="fx")
    assert nn.MultiheadAttention.forward is forward
