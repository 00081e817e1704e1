"""The table of samples: for each operator rule one small network in which a prunable axis goes through the operator.

A row is `produce` (3 to 6 channels), the function of the row, and `consume`, which reads one dimension of its result.
A new operator is one entry in passes/ops/<family>.py and one row here; test_ops.py judges each row with the oracle
and refuses a rule without one.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Sample:
    """What a row says: the network, its input, the groups it offers and (part of) the reason of what must stay.

    counted: whether torch's FLOP counter knows the operator.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: str
    stays: str
    counted: bool


SAMPLES: dict[str, Sample] = {}
ON_VALUES = frozenset(["nonzero", "bincount"])  # no graph on meta runs them: test_routing.py runs modules that do
ELSEWHERE: dict[str, Sample] = {}  # operators that only other devices run: analysed and rewritten, not computed


class Sandwich(nn.Module):
    """produce, then `function` of its result and of `more`, then consume along dimension `read`.

    more: parameters by their shape, modules and buffers by a function that makes them.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        shape: tuple[int, ...],
        width: int,
        read: int | None,
        device: str,
        **more: Any,
    ) -> None:
        super().__init__()
        rank = len(shape)
        kinds: dict[int, Any] = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        self.produce = kinds[rank](shape[1], width, *(() if rank == 2 else (1,)))
        self.function, self.read, self.names = function, read, list(more)
        for name, value in more.items():
            made = nn.Parameter(torch.randn(value)) if isinstance(value, tuple) else value()
            if isinstance(made, nn.Module | nn.Parameter):
                setattr(self, name, made)
            else:
                self.register_buffer(name, made)
        if read is not None:
            with torch.no_grad():
                dry = copy.deepcopy(self).to(device)
                result = function(dry.produce(torch.randn(shape, device=device)), *(getattr(dry, n) for n in more))
            self.consume = nn.Linear(result.shape[read], 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.produce(x), *(getattr(self, name) for name in self.names))
        return y if self.read is None else self.consume(torch.movedim(y, self.read, -1))


def row(
    operators: str,
    function: Callable[..., Any],
    groups: str = "produce 6",
    *,
    shape: tuple[int, ...] = (2, 3, 4, 4),
    width: int = 6,
    read: int | None = 1,
    stays: str = "",
    device: str = "cpu",
    counted: bool = True,
    **more: Any,
) -> None:
    """Enter a row for an operator, or for several; `function` is given the operator too where it asks for `op`."""
    for operator in operators.split():
        assert operator not in SAMPLES, f"two rows for {operator}"
        packet, _, overload = operator.partition(".")
        library, _, own = operator.rpartition("::")
        op = getattr(getattr(torch.ops, library), own) if library else getattr(aten, packet)
        op = getattr(op, overload) if overload else op
        named = function.__code__.co_varnames[: function.__code__.co_argcount]
        called = functools.partial(function, op=op) if "op" in named else function
        make = functools.partial(Sandwich, called, shape, width, read, device, **more)
        SAMPLES[operator] = Sample(make, shape, groups, stays, counted)


def elsewhere(operators: str, function: Callable[..., Any], groups: str = "produce 6", **how: Any) -> None:
    """Enter a row whose operator no CPU can run."""
    row(operators, function, groups, device="meta", **how)
    for operator in operators.split():
        ELSEWHERE[operator] = SAMPLES.pop(operator)


def left_alone(operators: str, function: Callable[..., Any], stays: str, **how: Any) -> None:
    """Enter a row whose operator keeps its axis, for the reason `stays`."""
    row(operators, function, "", stays=stays, **how)


MATRIX = (4, 3)
SERIES = (2, 3, 8)
VIDEO = (2, 3, 4, 4, 4)


def grouped_by_loop(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Rows in order of their experts, each times the matrix of its own."""
    places = [0, *offs.tolist()]
    return torch.cat([input[a:b] @ one for a, b, one in zip(places, places[1:], weight, strict=False)])


def grouped_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Those of `grouped_by_loop`."""
    operands = [t.detach().requires_grad_() for t in ctx.of[:2]]
    with torch.enable_grad():
        result = grouped_by_loop(*operands, ctx.of[2])
    return (*torch.autograd.grad(result, operands, grad), None)


if importlib.util.find_spec("transformers") is None:  # which defines it when it is imported
    _fallback = torch.library.custom_op("transformers::grouped_mm_fallback", grouped_by_loop, mutates_args=())
    _fallback.register_fake(lambda input, weight, offs: input.new_empty(len(input), weight.shape[2]))
    _fallback.register_autograd(grouped_gradients, setup_context=lambda ctx, inputs, output: setattr(ctx, "of", inputs))
else:
    importlib.import_module("transformers.integrations.moe")


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def _written(x: Tensor, op: Any) -> tuple[Any, ...]:
    """What a scatter writes: each row's values at the place of its largest."""
    index = x.argmax(2, True).expand(x.shape)
    return (index, x, "amax") if op is aten.scatter_reduce else (index, x)


def _clipped(x: Tensor) -> Tensor:
    """One number wherever a flag stands."""
    x = x.clone()
    x[x < 0.3] = 0.5
    return x


def _rows_written(x: Tensor) -> Tensor:
    """(n, length, 6), where rows of the second half take the place of those of the first."""
    x = x.flatten(2).mT
    return x.masked_scatter((torch.arange(x.shape[1]) < 8)[:, None].expand_as(x), x[:, 8:])


def heads(x: Tensor) -> Tensor:
    """(n, 6, 4, 4) as (n, 2 heads, 16 places, 3)."""
    return x.flatten(2).unflatten(1, (2, 3)).transpose(2, 3).contiguous()


def joined(x: Tensor) -> Tensor:
    """Back to (n, 6, 16)."""
    return x.transpose(2, 3).flatten(1, 2)


# pointwise
row("clone alias lift lift_fresh lift_fresh_copy zero", lambda x, op: x + op(x))
row("zeros_like ones_like", lambda x, op: x + op(x))
row("_to_copy", lambda x: x.to(torch.float64, copy=True))
row("detach", lambda x: x + x.detach())
row("copy", lambda x: torch.zeros_like(x).copy_(x))
row("full_like fill", lambda x, op: x + op(x, 0.5))
row("empty_like", lambda x: x + torch.empty_like(x).fill_(0.5))
row("_prelu_kernel", lambda x, w: F.prelu(x, w), w=(6,))
row("masked_fill", lambda x: x.masked_fill(x > 0, 0.5))
row("where", lambda x: torch.where(x > 0, x, 0.1 * x))
row("_conj", lambda x: torch.conj(torch.fft.fft(x, dim=2)).abs())
row("hardswish", lambda x: F.hardswish(x))
row("log_sigmoid_forward", lambda x: F.logsigmoid(x))
row("bucketize", lambda x: x + torch.bucketize(x, torch.arange(4.0, dtype=x.dtype)))
row("searchsorted.Tensor", lambda x: x + torch.searchsorted(torch.arange(4.0, dtype=x.dtype), x))
row("native_dropout", lambda x: torch.native_dropout(x, 0.5, False)[0])
row("glu", lambda x: F.glu(x, 1), "produce 3")
DRAWN = "random numbers are drawn"
left_alone("rand_like randn_like", lambda x, op: x + op(x), DRAWN)
left_alone("bernoulli", lambda x: x * torch.bernoulli(torch.sigmoid(x)), DRAWN)
left_alone("uniform", lambda x: x + x.clone().uniform_(), DRAWN)
left_alone("normal_functional", lambda x: x + aten.normal_functional(x), DRAWN)
left_alone("exponential", lambda x: x + x.clone().exponential_(), DRAWN)
left_alone("rrelu_with_noise", lambda x: F.rrelu(x, training=True), DRAWN)
left_alone("rrelu_with_noise_functional", lambda x, op: op(x, x, 0.1, 0.3, True)[0], DRAWN)

# contraction
row("mm", lambda x, w: x @ w, "produce 6, w 7", shape=MATRIX, w=(6, 7))
row("bmm", lambda x, w: (x.flatten(2).mT @ w.expand(2, 6, 7)).mT, "produce 6, w 7", w=(1, 6, 7))
row(
    "transformers::grouped_mm_fallback",
    lambda x, w, places, op: op(x, w, places),
    "produce 6, w 7",
    shape=MATRIX,
    w=(3, 6, 7),
    places=lambda: torch.tensor([1, 3, 4], dtype=torch.int32),
    counted=False,
    stays="rows are given to experts by their places",
)
row("mv", lambda x, w: (x @ w)[:, None], shape=MATRIX, w=(6,))
row("dot vdot", lambda x, w, op: op(x.mean((0, 2, 3)), w), read=None, w=(6,))
row("addmm", lambda x, w, b: torch.addmm(b, x, w), "produce 6, w 7", shape=MATRIX, w=(6, 7), b=(7,))
row("baddbmm", lambda x, w: torch.baddbmm(x.flatten(2), w.expand(2, 6, 6), x.flatten(2)), w=(1, 6, 6))
row("addmv", lambda x, w, b: torch.addmv(b, x, w)[:, None], shape=MATRIX, w=(6,), b=(1,))
row("_cdist_forward", lambda x, w: torch.cdist(x, w), "w 7, produce 6", shape=MATRIX, w=(7, 6))
row("_trilinear", lambda x, m: m(x, x), "produce 6, m 7", shape=MATRIX, m=lambda: nn.Bilinear(6, 6, 7))
row("_linalg_solve_ex", lambda x, a: torch.linalg.solve(a, x), shape=MATRIX, a=lambda: torch.ones(4, 4) + torch.eye(4))
row("convolution", lambda x, m: m(x), "produce 2, produce#2 3, m 2", m=lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2))
SETTINGS = ([1, 1], [1, 1], [1, 1], True, [0, 0], 2)
row(
    "_convolution",
    lambda x, w, op: op(x, w, None, *SETTINGS, *[False] * 4),
    "produce 2, produce#2 3, w 2",
    w=(6, 2, 3, 3),
)
ATTENDED = "produce 2, produce#2 3"
row(
    "_scaled_dot_product_flash_attention_for_cpu",
    lambda x, op: joined(op(heads(x), heads(x), heads(x))[0]),
    ATTENDED,
    counted=False,
)

row("eq ne lt le gt ge", lambda x, op: op(x, 0.1).to(x.dtype))

# reduction
row("sum nansum", lambda x, op: op(x, [1], True))
row("count_nonzero", lambda x: torch.count_nonzero(F.relu(x), 1)[:, None].to(x.dtype))
row("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True))
row("norm", lambda x, op: op(x, 2, [1], True))
MIXED = "produce 6 mixed"
row("mean amax amin", lambda x, op: op(x, [1], True), MIXED)
row("prod", lambda x: x.prod(1, True), MIXED)
row("var std", lambda x, op: op(x, [1], keepdim=True), MIXED)
row("var_mean std_mean", lambda x, op: torch.cat(op(x, [1], keepdim=True), 1), MIXED)
row("logsumexp", lambda x: x.logsumexp(1, True), MIXED)
row("any all", lambda x, op: op(x > 0, 1, True).to(x.dtype), MIXED)
row("aminmax", lambda x: torch.cat(torch.aminmax(x, dim=1, keepdim=True), 1), MIXED)
row("max.default min.default", lambda x, op: op(x), MIXED, read=None)
row("max.dim min.dim", lambda x, op: op(x, 1, True)[0], MIXED)
row("median.dim mode", lambda x, op: op(x, 1, True)[0], MIXED)
left_alone("argmax argmin", lambda x, op: op(x, 1, True).to(x.dtype), "computed as values")
SCANNED = "every position depends on the others"
left_alone("_softmax _log_softmax", lambda x, op: op(x, 1, False), SCANNED)
left_alone("_safe_softmax", lambda x, op: op(x, 1), SCANNED)
left_alone("cumsum cumprod logcumsumexp", lambda x, op: op(x, 1), SCANNED)
left_alone("cummax cummin sort", lambda x, op: op(x, 1)[0], SCANNED)
left_alone("topk", lambda x: x.topk(3, 1)[0], "chosen by value")
left_alone("histc", lambda x: x.sum((0, 2, 3)).histc(4, -1, 1)[None], "counted along this axis")
left_alone("kthvalue", lambda x: x.kthvalue(3, 1, True)[0], "chosen by value")

# normalisation
BATCH: dict[str, Any] = {
    "w": (6,), "b": (6,), "mean": lambda: torch.randn(6), "var": lambda: torch.rand(6) + 0.5
}  # fmt: skip
for _names, _setting in {
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional": (False, 0.1, 1e-5),
    "_native_batch_norm_legit_no_training _batch_norm_no_update": (0.1, 1e-5),
}.items():
    row(_names, lambda x, w, b, mean, var, op, rest=_setting: op(x, w, b, mean, var, *rest)[0], **BATCH)
row("native_layer_norm", lambda x, m: m(x), "produce 6 mixed", shape=MATRIX, m=lambda: nn.LayerNorm(6))
row("renorm", lambda x: torch.renorm(torch.renorm(x, 2, 1, 0.5), 1, 2, 0.5))
row("native_group_norm", lambda x, m: m(x), "produce 2, produce#2 3 mixed", m=lambda: nn.GroupNorm(2, 6))
row(
    "_weight_norm_interface",
    lambda x, w, g: F.conv2d(x, torch._weight_norm(w, g)),
    "w 7 mixed, produce 6",
    w=(7, 6, 1, 1),
    g=(7, 1, 1, 1),
)

# joining
row("cat", lambda x: torch.cat([x, -x], 1))
row("stack", lambda x: torch.stack([x, x.tanh()], 1).sum(1))
row("constant_pad_nd", lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), "produce 6, consume 2, consume#2 3")

# indexing
PICKED = "picked by an index"
row("embedding", lambda x, m: x[:, :, 0, 0] + m(torch.arange(2)), m=lambda: nn.Embedding(4, 6))
row("_embedding_bag", lambda x, w, op: x[:, :, 0, 0] + op(w, torch.arange(4), torch.tensor([0, 2]))[0], "w 6", w=(4, 6))
row(
    "_embedding_bag_forward_only",
    lambda x, m: x[:, :, 0, 0] + m(torch.arange(4).view(2, 2)),
    m=lambda: nn.EmbeddingBag(4, 6).requires_grad_(False),
)
row("index.Tensor", lambda x: x[:, :, torch.tensor([0, 2])])
row("_unsafe_index.Tensor", lambda x, op: op(x, [None, None, torch.tensor([0, 2])]))
left_alone("index_select", lambda x, op: op(x, 1, x.new_zeros(2).long()), PICKED)
row("scatter", lambda x: x + torch.zeros_like(x).scatter(2, x.argmax(2, True), 1.0))
row("scatter_add scatter_reduce", lambda x, op: op(x, 2, *_written(x, op)))
row("index_add index_copy", lambda x, op: op(x, 2, torch.tensor([1, 0]), x[:, :, :2]))
row("index_put", _clipped)
row("_unsafe_index_put", lambda x, op: op(x, [None, None, torch.tensor([0, 2])], x[:, :, :2]))
row("masked_scatter", _rows_written, read=2)
row("index_fill", lambda x: x.index_fill(2, torch.tensor([1]), 0.5))
row("index_reduce", lambda x: x.index_reduce(2, torch.tensor([1, 0]), x[:, :, :2], "amax"))
row("gather", lambda x: torch.gather(x, 2, (x > 0).long()))

# factories
row(
    "zeros ones empty",
    lambda x, op: torch.cat([x, op((2, 4, 4, 4), dtype=x.dtype).fill_(0.5)], 1),
    "produce 6, consume 4",
)
row("full", lambda x: torch.cat([x, torch.full((2, 4, 4, 4), 0.5, dtype=x.dtype)], 1), "produce 6, consume 4")
row(
    "new_zeros new_ones new_empty",
    lambda x, op: torch.cat([x, op(x, (2, 4, 4, 4)).fill_(0.5)], 1),
    "produce 6, consume 4",
)
row("new_full", lambda x, op: torch.cat([x, op(x, (2, 4, 4, 4), 0.5)], 1), "produce 6, consume 4")
row(  # what it makes cannot shrink, what it is joined to can
    "empty_strided",
    lambda x, op: torch.cat([x, op((2, 4, 4, 4), (64, 16, 4, 1), dtype=x.dtype).fill_(0.5)], 1),
    "produce 6",
    stays="its size does not follow",
)
left_alone(
    "new_empty_strided",
    lambda x, op: torch.cat([x, op(x, (2, 4, 4, 4), (64, 16, 4, 1)).fill_(0.5)], 1),
    "its size does not follow",
)
COMPUTED = "its positions are computed here"
left_alone("arange", lambda x: x + torch.arange(6, dtype=x.dtype)[:, None, None], COMPUTED)
left_alone("linspace logspace", lambda x, op: x + op(0, 1, 6, dtype=x.dtype)[:, None, None], COMPUTED)
left_alone("eye", lambda x: x + torch.eye(6, dtype=x.dtype)[0][:, None, None], COMPUTED)
left_alone("randn rand", lambda x, op: x + op((6, 1, 1), dtype=x.dtype), COMPUTED)
left_alone("randint", lambda x: x + torch.randint(0, 5, (x.shape[1], 1, 1)), COMPUTED)
left_alone("randperm", lambda x: x + torch.randperm(x.shape[1])[:, None, None], COMPUTED)
left_alone("tril_indices triu_indices", lambda x, op: x + op(x.shape[1] // 2, 3)[0][:, None, None], COMPUTED)
row("scalar_tensor", lambda x, op: x + op(0.5, dtype=x.dtype))
left_alone("tril triu", lambda x, op: op(x.flatten(2)), "a triangle is cut along this axis")

# views
row("view.default", lambda x: x.view(2, 2, 3, 16).transpose(1, 2).flatten(1, 2), "produce 2, produce#2 3")
row("_unsafe_view view_copy.default", lambda x, op: op(x, (2, 2, 3, 16))[:, 0], "produce 3")
left_alone("as_strided", lambda x: x.as_strided((2, 6, 4, 4), (96, 16, 4, 1)), "its size does not follow")
row("permute", lambda x: x.permute(0, 2, 3, 1), read=3)
row("t", lambda x: x.t(), read=0, shape=MATRIX)
row("transpose", lambda x: x.transpose(1, 3), read=3)
row("unsqueeze", lambda x: x.unsqueeze(1), read=2)
row("squeeze", lambda x: x.unsqueeze(0).squeeze(0))
row("expand", lambda x: x[:, None].expand(-1, 3, -1, -1, -1).flatten(1, 2), "produce 6, consume 3")
row("repeat", lambda x: x.repeat(1, 3, 1, 1))
row("select", lambda x: torch.stack([x.select(1, 2), x[:, 4]], 1) + x.mean(1, True), "produce 2 mixed")
row("slice.Tensor", lambda x: x[:, 1:5:2] + x[:, 2:6:2], "")
row("split.Tensor", lambda x: torch.cat(x.split(4, 1)[::-1], 1), "produce 4, produce#2 2")
row("split_with_sizes", lambda x: torch.cat(x.split([2, 4], 1)[::-1], 1), "produce 2, produce#2 4")
row(
    "split_with_sizes_copy unsafe_split_with_sizes",
    lambda x, op: torch.cat(op(x, [2, 4], 1)[::-1], 1),
    "produce 2, produce#2 4",
)
row("unsafe_split", lambda x, op: torch.cat(op(x, 4, 1)[::-1], 1), "produce 4, produce#2 2")
left_alone("unbind", lambda x: torch.stack(x.unbind(1)[::2], 1), "taken apart position by position")
row("flip", lambda x: x.flip(1))
row("rot90", lambda x: torch.rot90(x, 3, (1, 2)), read=2)
row("roll", lambda x: x.roll(2, 1), "produce 4, produce#2 2")
row("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), "produce 2", width=8)
row("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2))
row("channel_shuffle", lambda x: F.channel_shuffle(x, 2), "produce 2, produce#2 3")
left_alone("diagonal", lambda x: torch.diagonal(x, 0, 1, 2), "a diagonal runs along this axis", read=2)
row("unfold", lambda x: x.unfold(2, 2, 1))

# space
row("reflection_pad1d replication_pad1d", lambda x, op: op(x, (1, 2)), shape=SERIES)
row("upsample_nearest1d _upsample_nearest_exact1d", lambda x, op: op(x, [12]), shape=SERIES)
row("upsample_linear1d", lambda x, op: op(x, [12], False), shape=SERIES)
row("avg_pool2d max_pool2d_with_indices", lambda x, op: _first(op(x, [2, 2])))
row("_adaptive_avg_pool2d adaptive_max_pool2d", lambda x, op: _first(op(x, [3, 3])))
row("reflection_pad2d replication_pad2d", lambda x, op: op(x, (1, 2, 0, 1)))
row("upsample_nearest2d _upsample_nearest_exact2d", lambda x, op: op(x, [6, 7]))
row("upsample_bilinear2d upsample_bicubic2d", lambda x, op: op(x, [6, 7], False))
row("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", lambda x, op: op(x, [3, 3], False))
row("max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))
row("avg_pool3d max_pool3d_with_indices", lambda x, op: _first(op(x, [2, 2, 2])), shape=VIDEO)
row("_adaptive_avg_pool3d adaptive_max_pool3d", lambda x, op: _first(op(x, [3, 3, 3])), shape=VIDEO)
row("reflection_pad3d replication_pad3d", lambda x, op: op(x, (1, 2, 0, 1, 1, 1)), shape=VIDEO)
row("upsample_nearest3d _upsample_nearest_exact3d", lambda x, op: op(x, [6, 7, 5]), shape=VIDEO)
row("upsample_trilinear3d", lambda x, op: op(x, [6, 7, 5], False), shape=VIDEO)
row("max_unpool3d", lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), shape=VIDEO)
row("im2col", lambda x: F.unfold(x, 2))
row("col2im", lambda x: F.fold(x.flatten(2)[:, :, :9], 4, 2), "produce 2", width=8)
row(
    "grid_sampler_2d", lambda x: F.grid_sample(x, torch.tanh(x[:, :2].movedim(1, -1)), align_corners=False), "produce 4"
)
row(
    "grid_sampler_3d",
    lambda x: F.grid_sample(x, torch.tanh(x[:, :3].movedim(1, -1)), align_corners=False),
    "produce 3",
    shape=VIDEO,
)
row(
    "affine_grid_generator",
    lambda x, w: x + F.affine_grid(w.expand(2, 2, 3), [2, 6, 4, 4], False).mean(-1)[:, None],
    w=(1, 2, 3),
)

# Fourier
row("_fft_r2c", lambda x: torch.fft.rfft(x, dim=2).abs())
row("_fft_c2c", lambda x: torch.fft.fft(torch.fft.fft(x, dim=2), dim=3).abs())
row("_fft_c2r", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=2), dim=2))
row("view_as_real", lambda x: torch.view_as_real(torch.fft.fft(x, dim=2))[..., 1])
row("view_as_complex", lambda x: torch.view_as_complex(x.unflatten(3, (2, 2)).contiguous()).abs())

# other devices
FUSED = "_scaled_dot_product_flash_attention _scaled_dot_product_fused_attention_overrideable"
elsewhere(
    "_grouped_mm",
    lambda x, w, places: torch._grouped_mm(x.bfloat16(), w.bfloat16(), offs=places).float(),
    "produce 16, w 32",
    shape=MATRIX,
    width=16,
    w=(3, 16, 32),
    places=lambda: torch.tensor([1, 3, 4], dtype=torch.int32),
)
elsewhere(FUSED, lambda x, op: joined(op(heads(x), heads(x), heads(x))[0]), ATTENDED)
elsewhere(
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    lambda x, op: joined(op(heads(x), heads(x), heads(x), None, False)[0]),
    ATTENDED,
)
elsewhere(
    "cudnn_batch_norm miopen_batch_norm",
    lambda x, w, b, mean, var, op: op(x, w, b, mean, var, False, 0.1, 1e-5)[0],
    **BATCH,
)
elsewhere("_batch_norm_with_update", lambda x, w, b, mean, var, op: op(x, w, b, mean, var, 0.1, 1e-5)[0], **BATCH)
