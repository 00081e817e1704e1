"""torch.nn's attention and encoder modules in traceable form: projections, heads as literals, one attention call.

`nn.MultiheadAttention` and the encoders are leaves to fx, because their own forward cannot be traced: it chooses
fast paths by the values of flags and shapes. While a model is traced, `lowered()` puts the forwards of this file in
their place; decoders have no fast path, and are traced through as they are. The forwards compute the same (the slow
path of torch) on the same parameters under the same names:

    q, k, v = linear(x, in_proj_weight, in_proj_bias).split([E, E, E], -1)
    q = q.unflatten(-1, (heads, head_dim)) ...          # the only places that state a head count
    out_proj(scaled_dot_product_attention(q, k, v, scale=head_dim ** -0.5).flatten(-2))

Ranks are counted from the end, so that batched and unbatched input take the same graph, and no batch size or length
is stated. The scale is a literal: it does not follow head_dim when heads are pruned. A causal hint is
believed where it is given and not guessed from the values of a mask, which changes no result.
In evaluation without gradients torch zeroes the padded positions of TransformerEncoder's output; this graph,
like torch in training, leaves what they hold. A module whose result depends on it is refused
(`passes.equality.padded_positions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import transformer

from passes.frontend.leaf_modules import is_opened
from passes.frontend.tracer import Unresolved, ValueProxy
from passes.process.torch_private import canonical_mask, encoder_blocks
from passes.stream.head_attention import by_head, merged_mask, with_row

LOWERED: dict[type[nn.Module], Callable[..., object]] = {}
_LOOKS_AT_MASKS = "_detect_is_causal_mask"  # of torch's transformers: whether a mask is causal, by its values


@contextmanager
def lowered() -> Iterator[None]:
    """Inside, the modules in LOWERED run the forwards of this file, and a mask is causal where that is said."""
    originals = {kind: kind.forward for kind in LOWERED}
    looks = getattr(transformer, _LOOKS_AT_MASKS)
    try:
        setattr(transformer, _LOOKS_AT_MASKS, lambda mask, is_causal=None, size=None: is_causal is True)
        for kind, forward in LOWERED.items():
            kind.forward = forward
        yield
    finally:
        setattr(transformer, _LOOKS_AT_MASKS, looks)
        for kind, forward in originals.items():
            kind.forward = forward


def is_lowered(module: nn.Module) -> bool:
    """Whether, inside `lowered()`, this module is traced through, unlike torch's other modules."""
    return type(module).forward in LOWERED.values() or is_opened(type(module))


def _lowers(kind: type[nn.Module]) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def register(forward: Callable[..., object]) -> Callable[..., Any]:
        LOWERED[kind] = forward
        return forward

    return register


@_lowers(nn.MultiheadAttention)
def attend(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | ValueProxy | None]:
    """The output, and the weights: a proxy that adds itself to the graph only when it is used."""
    if is_causal and attn_mask is None:
        raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
    heads, size = self.num_heads, self.head_dim
    q, k, v = (by_head(x, heads, size, self.batch_first) for x in _project(self, query, key, value))
    added = (self.bias_k is not None) + bool(self.add_zero_attn)
    if self.bias_k is not None and self.bias_v is not None:
        k, v = with_row(k, self.bias_k, heads, size), with_row(v, self.bias_v, heads, size)
    if self.add_zero_attn:
        k, v = (torch.cat([rows, torch.zeros_like(rows[..., :1, :])], -2) for rows in (k, v))
    hint = is_causal and key_padding_mask is None and not need_weights
    mask = None if hint else _mask(self, query, attn_mask, key_padding_mask, added)
    dropout = self.dropout * self.training if self.dropout else 0.0
    scale = self.head_dim**-0.5
    fused = {"attn_mask": mask, "dropout_p": dropout, "is_causal": hint, "scale": scale}
    spelling = (q, k, v, mask, scale, self.dropout, self.training, average_attn_weights)
    weights: Tensor | ValueProxy | None = None
    if not need_weights:
        attended = F.scaled_dot_product_attention(q, k, v, **fused)
    elif isinstance(query, fx.Proxy):
        attended = F.scaled_dot_product_attention(q, k, v, **fused)
        weights = _Weights(attended, *spelling)
    else:  # torch.export runs this on tensors, and drops what is not used
        attended, weights = _spelt_out(*spelling)
        attended = attended if self.dropout else F.scaled_dot_product_attention(q, k, v, **fused)
    moved = attended.transpose(-3, -2) if self.batch_first else attended.movedim(-2, 0)
    return self.out_proj(moved.flatten(-2)), weights


def _project(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., E) each; one product where the three inputs are one."""
    sizes = [self.embed_dim] * 3
    if self.in_proj_weight is not None and query is key and key is value:
        q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, -1)
        return q, k, v
    bias: Sequence[Tensor | None] = (
        (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes, 0)
    )
    if self.in_proj_weight is not None:
        weight: Sequence[Tensor] = self.in_proj_weight.split(sizes, 0)
    else:
        weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    q, k, v = (F.linear(x, weight[part], bias[part]) for part, x in enumerate((query, key, value)))
    return q, k, v


def _mask(
    self: nn.MultiheadAttention, query: Tensor, attn_mask: Tensor | None, padding: Tensor | None, added: int
) -> Tensor | None:
    mask, padded = (
        None if given is None else _additive(query, given, name)
        for given, name in ((attn_mask, "attn_mask"), (padding, "key_padding_mask"))
    )
    per_head = attn_mask is not None and _rank(attn_mask) == 3 and _rank(query) != 2
    return merged_mask(mask, padded, self.num_heads if per_head else 0, added)


def _additive(query: Tensor, mask: Tensor, name: str) -> Any:
    """Boolean to 0 and -inf; a call that looks at the type when it runs, since tracing need not know it."""
    said: dict[str, Any] = {
        "mask_name": name,
        "other_type": None,
        "other_name": "",
        "target_type": query.dtype,
        "check_other": False,
    }
    if not isinstance(query, fx.Proxy):
        return canonical_mask(mask=mask, **said)
    return query.tracer.create_proxy("call_function", canonical_mask, (), {"mask": mask, **said})


def _spelt_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, p: float, training: bool, average: bool
) -> tuple[Tensor, Tensor]:
    """Output and weights by the products and the softmax that the fused attention call stands for."""
    scores = (q * scale).matmul(k.transpose(-2, -1))
    weights = F.softmax(scores if mask is None else scores + mask, -1)
    weights = F.dropout(weights, p, training=training) if p else weights
    return weights.matmul(v), weights.mean(-3) if average else weights


def _rank(x: Tensor) -> int | None:
    """Number of dimensions; None where it is unknown (then a mask counts as (L, S), the input as batched)."""
    if not isinstance(x, fx.Proxy):
        return x.dim()
    try:
        return x.tracer.value(x).dim()
    except Unresolved:
        return None


class _Weights(ValueProxy):
    """Attention weights, (N, L, S) or by head (N, heads, L, S), that cost nothing unless they are used.

    When they are, the fused attention call is replaced by the products and the softmax that it stands for, so that
    the weights are those that the output was made with, dropout included.
    """

    def __init__(self, attended: Any, *arguments: Any) -> None:
        self.tracer = attended.tracer
        self._attended = attended
        self._arguments = arguments
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        if self._node is None:
            self._node = self._spell_out()
        return self._node

    @node.setter
    def node(self, node: fx.Node) -> None:
        self._node = node

    def _spell_out(self) -> fx.Node:
        fused = self._attended.node
        with fused.graph.inserting_before(fused):
            output, shown = map(attrgetter("node"), _spelt_out(*self._arguments))
        fused.replace_all_uses_with(output)
        fused.graph.erase_node(fused)
        return shown


@_lowers(nn.TransformerEncoderLayer)
def encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    attention, behind = encoder_blocks(self)
    if self.norm_first:
        src = src + attention(self.norm1(src), src_mask, src_key_padding_mask, is_causal=is_causal)
        return src + behind(self.norm2(src))
    src = self.norm1(src + attention(src, src_mask, src_key_padding_mask, is_causal=is_causal))
    return self.norm2(src + behind(src))


@_lowers(nn.TransformerEncoder)
def encoder(
    self: nn.TransformerEncoder, src: Tensor, mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None, is_causal: bool | None = None,
) -> Tensor:  # fmt: skip
    for layer in self.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=is_causal is True)
    return src if self.norm is None else self.norm(src)
