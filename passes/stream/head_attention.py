"""`nn.MultiheadAttention` with any number of heads of any size: what takes its place where its heads shrink.

torch's class states ``embed_dim = heads * head_dim`` in its forward. Here the heads, their size in queries and keys,
and their size in values are attributes of their own. Parameters keep their names, and forward its signature.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes.process.torch_private import canonical_mask


class HeadAttention(nn.MultiheadAttention):
    """Attention of `num_heads` heads: queries and keys of `head_dim`, values of `value_head_dim` units a head.

    Made by `with_heads` from a module of torch's class, whose parameters and settings it keeps.
    """

    value_head_dim: int
    scale: float

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False  # the fast path of nn.TransformerEncoderLayer, which states torch's sizes, asks this first

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        """torch's constructor and __setstate__ write it."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The attended values (as `query`), and the weights (N, L, S), a head apart (N, heads, L, S), or None."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        heads, size, value_size = self.num_heads, self.head_dim, self.value_head_dim
        projected = zip(self._projected(query, key, value), (size, size, value_size), strict=True)
        q, k, v = (by_head(x, heads, own, self.batch_first) for x, own in projected)
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = with_row(k, self.bias_k, heads, size), with_row(v, self.bias_v, heads, value_size)
            added += 1
        if self.add_zero_attn:
            k, v = (torch.cat([rows, torch.zeros_like(rows[..., :1, :])], -2) for rows in (k, v))
            added += 1
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else self._mask(query, attn_mask, key_padding_mask, added)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale).matmul(k.transpose(-2, -1))
            weights = F.softmax(scores if mask is None else scores + mask, -1)
            if dropout:
                weights = F.dropout(weights, dropout)
            attended = weights.matmul(v)
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, hint, scale=self.scale)
        # The dimension is counted from the front: torch.onnx (2.13, by trace) writes a negative one into Transpose.
        moved = attended.transpose(-3, -2) if self.batch_first else attended.movedim(attended.dim() - 2, 0)
        return self.out_proj(moved.flatten(-2)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        inner = self.num_heads * self.head_dim
        sizes = [inner, inner, self.num_heads * self.value_head_dim]
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, -1)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes, 0)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(sizes, 0)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _mask(self, query: Tensor, attn_mask: Tensor | None, padding: Tensor | None, added: int) -> Tensor | None:
        mask, padded = (
            None if given is None else _additive(given, query.dtype, name)
            for given, name in ((attn_mask, "attn_mask"), (padding, "key_padding_mask"))
        )
        per_head = attn_mask is not None and attn_mask.dim() == 3 and query.dim() != 2
        return merged_mask(mask, padded, self.num_heads if per_head else 0, added)


def by_head(x: Tensor, heads: int, size: int, batch_first: bool) -> Tensor:
    """(N, L, heads * size), or with the length first, to (N, heads, L, size)."""
    split = x.unflatten(-1, (heads, size))
    return split.transpose(-3, -2) if batch_first else split.movedim(0, -2)


def with_row(rows: Tensor, row: Tensor, heads: int, size: int) -> Tensor:
    """The learned extra key or value (1, 1, heads * size) behind `rows` (N, heads, S, size)."""
    row = row.flatten().unflatten(0, (heads, size)).unsqueeze(-2)
    return torch.cat([rows, row.expand_as(rows[..., :1, :])], -2)


def merged_mask(mask: Tensor | None, padding: Tensor | None, heads: int, added: int) -> Tensor | None:
    """One additive mask that broadcasts against (N, heads, L, S), or None; `added` keys are open to all.

    mask: additive, (L, S) or (N * heads, L, S); heads: of the latter, else 0. padding: additive, (N, S).
    """
    masks = [] if mask is None else [mask.unflatten(0, (-1, heads)) if heads else mask]
    if padding is not None:
        masks.append(padding[..., None, None, :])
    if not masks:
        return None
    merged = masks[0] if len(masks) == 1 else masks[0] + masks[1]
    return F.pad(merged, (0, added)) if added else merged


def _additive(mask: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    additive = canonical_mask(
        mask=mask, mask_name=name, other_type=None, other_name="", target_type=dtype, check_other=False
    )
    assert additive is not None, "of a mask"
    return additive


def with_heads(module: nn.MultiheadAttention) -> HeadAttention:
    """`module` itself, its class replaced: equal to torch's until its sizes are changed."""
    module.__dict__.pop("_qkv_same_embed_dim", None)
    module.__class__ = HeadAttention
    assert isinstance(module, HeadAttention)
    module.value_head_dim = module.head_dim
    module.scale = module.head_dim**-0.5  # stays as it was when head_dim shrinks
    return module


def no_nested_tensors(encoder: nn.TransformerEncoder) -> None:
    """Have an encoder give its layers plain tensors: torch's own layers alone take nested ones, on their fast path."""
    encoder.enable_nested_tensor = encoder.use_nested_tensor = False


def is_torchs_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether `module` is of torch's own class, or of one that changes nothing of its forward."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward
