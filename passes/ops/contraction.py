"""Operators that multiply and sum: convolutions, matrix products, attention. These count MACs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from passes.axes.expressions import ONE, Axis
from passes.ops import operands
from passes.ops.call import MOVED, Call, aten
from passes.ops.equation import equation_rule, solve
from passes.ops.literals import Site
from passes.ops.meta_shapes import Shape, always, shaped, windows
from passes.ops.table import rule, states
from passes.ops.zeros import NEVER, PRODUCT, product, taken


def _product(left: torch.Tensor, right: torch.Tensor) -> Shape | None:
    fits = left.shape[-1] == right.shape[-2] and left.shape[:-2] == right.shape[:-2] and left.dtype == right.dtype
    return (*left.shape[:-1], right.shape[-1]) if fits else None


def _product_added(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> Shape | None:
    return _product(left, right) if bias.shape == right.shape[-1:] and bias.dtype == left.dtype else None


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Shape, padding: Shape, dilation: Shape,
    transposed: bool, output_padding: Shape, groups: int,
) -> Shape | None:  # fmt: skip
    size, taps = x.shape, weight.shape
    fits = len(size) == len(taps) and size[1] == taps[1] * groups and taps[0] % groups == 0
    if transposed or not fits or x.dtype != weight.dtype or not weight.is_contiguous():
        return None
    if bias is not None and (bias.shape != taps[:1] or bias.dtype != x.dtype):
        return None
    if not len(stride) == len(padding) == len(dilation) == len(size) - 2:
        return None
    space = windows(size[2:], taps[2:], stride, padding, dilation)
    return None if space is None else (size[0], taps[0], *space)


def _attention(site: Site) -> None:
    """The default scale is 1/sqrt(head dim): it is pinned to the dense network's."""
    query = site.axes_of(site.argument(0, "query"))
    if query is None or query[-1].size == site.new_size(query[-1]):
        return
    if site.node.kwargs.get("scale") is None:  # a keyword in every spelling
        site.node.update_kwarg("scale", query[-1].size ** -0.5)


PRODUCTS: dict[str, Any] = {
    "zeros": PRODUCT, "sizeless": True, "meta": shaped(_product, any_layout=always), "reads": operands.product,
}  # fmt: skip
equation_rule([aten.mm], "m k, k n -> m n", ["self", "mat2"], macs="m k n", **PRODUCTS)
equation_rule([aten.bmm], "b m k, b k n -> b m n", ["self", "mat2"], macs="b m k n", **PRODUCTS)
# torch counts no FLOPs for products with one vector
equation_rule([aten.mv], "m k, k -> m", ["self", "vec"], zeros=PRODUCT, reads=operands.product)
equation_rule([aten.dot, aten.vdot], "k, k -> ", ["self", "tensor|other"], zeros=PRODUCT)
# A distance from zero is none; a coordinate that is zero on both sides adds nothing.
equation_rule([aten._cdist_forward], "... m k, ... n k -> ... m n", ["x1", "x2"], zeros=NEVER)


@rule(
    aten.addmm, aten.baddbmm, aten.addmv, zeros=product(["mat1|batch1|mat", "mat2|batch2|vec"], ["self"]),
    sizeless=True, reads=operands.added_product,
)  # fmt: skip
def add_product(call: Call) -> list[list[Axis]]:
    """A matrix product added to a tensor that is broadcast to it."""
    equation, names, macs = {
        "addmm": ("m k, k n -> m n", ("mat1", "mat2"), "m k n"),
        "baddbmm": ("b m k, b k n -> b m n", ("batch1", "batch2"), "b m k n"),
        "addmv": ("m k, k -> m", ("mat", "vec"), ""),
    }[call.func.overloadpacket.__name__.rstrip("_")]
    (result,), solved = solve(call, equation, [call[name] for name in names])
    if macs:
        call.count(*solved.lookup(macs))
    for axis, other in zip(reversed(result), reversed(call.axes("self")), strict=False):
        if axis.size == other.size:  # else the addend is broadcast
            call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in result]]


states(aten.addmm, meta=shaped(_product_added, any_layout=always))


@rule(
    aten.convolution, aten._convolution, zeros=product(["input", "weight"], ["bias"]), sizeless=True,
    reads=operands.convolution,
)  # fmt: skip
def convolution(call: Call) -> list[list[Axis]]:
    """Convolution of any rank, grouped and transposed: MACs are the weight's elements at every place it is applied."""
    operands, groups = [call["input"], call["weight"], call["bias"]], call["groups"]
    if groups == 1 and not call["transposed"] and min(operands[1].shape[:2]) > 1:
        return [_plain_convolution(call, *operands)]
    weight = "(g i) o *k" if call["transposed"] else "(g o) i *k"
    equation = f"n (g i) *s, {weight}, (g o)? -> n (g o) *t"
    outputs, solved = solve(call, equation, operands, {"g": groups})
    call.literal("groups", solved["g"])
    call.count(*solved.lookup("n g o i *k"), *solved["*s" if call["transposed"] else "*t"])
    return outputs


def _plain_convolution(call: Call, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> list[Axis]:
    """What the equation gives where there is one group, in a third of its time: most calls are such."""
    batch, entering, *space = call.axes(x)
    call.freeze(space, MOVED)
    leaving, read, *taps = call.axes(weight)
    entering = call.tie(entering, read)
    call.freeze(taps, MOVED)
    if bias is not None:
        leaving = call.tie(leaving, *call.axes(bias))
    call.contract(entering)
    call.literal("groups", ONE)
    places = call.fixed(0, slice(2, None))
    call.count(batch, ONE, leaving, entering, *taps, *places)
    return [call.space.resolve(batch), call.space.resolve(leaving), *places]


@cache
def _decided_by_weight() -> bool:
    """Whether the layout of a convolution's result is that of its weight, as in newer versions of torch."""
    x = torch.empty(2, 2, 4, 4, device="meta", memory_format=torch.channels_last)
    weight = torch.empty(2, 2, 2, 2, device="meta")
    made: torch.Tensor = aten.convolution.default(x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return made.is_contiguous()


states(aten.convolution, meta=shaped(_convolution, any_layout=_decided_by_weight))
states(aten.linear, reads=operands.linear)  # which is not decomposed in inference mode


def _grouped(rows: torch.Tensor, matrices: torch.Tensor, places: object = None, *more: object) -> Shape | None:
    """The meta device takes one type of numbers only, and strides that fit a GPU."""
    fits = rows.dim() == 2 and matrices.dim() == 3 and rows.shape[1] == matrices.shape[1]
    return (rows.shape[0], matrices.shape[2]) if fits and places is not None and not any(more) else None


@rule(
    aten._grouped_mm, "transformers::grouped_mm_fallback",
    zeros=product(["self|input", "mat2|weight"], ["bias"]), sizeless=True,
)  # fmt: skip
def grouped_product(call: Call) -> list[list[Axis]]:
    """Rows in order of their experts, each times the matrix of its own; torch counts no FLOPs for it, a row does."""
    rows, matrices = call.get("self", "input"), call.get("mat2", "weight")
    places, bias = call["offs"], call.get("bias")
    if (rows.dim(), matrices.dim()) != (2, 3) or places is None:
        for tensor in (rows, matrices):
            call.freeze(call.axes(tensor), "matrices of several sizes are multiplied in one call")
        return [call.fixed()]
    (result,), solved = solve(call, "s k, e k n -> s n", [rows, matrices])
    call.freeze(solved["s"], "rows are given to experts by their places")
    summed = list(call.record.contracted)
    summed.remove(solved["e"])  # a row is multiplied by one matrix
    call.record.contracted = tuple(summed)
    call.tie(solved["e"], call.axes(places)[0])
    call.space.freeze_unless_routed(solved["e"], call.reason("rows are given to experts by their places"))
    if bias is not None:
        call.tie(call.axes(bias)[-1], solved["n"])
    if call.func.namespace == "aten":  # rows begin at multiples of 16 bytes
        elements = 16 // rows.element_size()
        call.record.multiples += tuple((axis, elements) for axis in solved.lookup("k n"))
    call.count(*solved.lookup("s k n"))
    return [[call.space.resolve(axis) for axis in result]]


states(aten._grouped_mm, meta=shaped(_grouped, any_layout=always))


@rule(aten._linalg_solve_ex, zeros=taken("B"))
def solve_equations(call: Call) -> list[list[Axis]]:
    """A X = B, or X A = B: every unknown depends on every equation; right-hand sides are carried, each by itself."""
    *lead, rows, columns = call.axes("A")
    axes = call.axes("B")
    matrix = len(axes) > len(lead) + 1 or len(axes) > 1 and call.tensors[0].shape[:-1] != call.tensors[1].shape
    unknown = len(axes) - 2 + (not call["left"]) if matrix else len(axes) - 1
    call.freeze([rows, columns, axes[unknown]], "the unknowns of a system of equations lie along this axis")
    for axis, other in zip(lead, axes, strict=False):
        call.tie(axis, other)
    return [[call.space.resolve(axis) for axis in axes]]


@rule(aten._trilinear, zeros=PRODUCT)
def trilinear(call: Call) -> list[list[Axis]]:
    """The product of three broadcast tensors summed over some dimensions (nn.Bilinear); no MACs by torch."""
    rank = len(call.outputs[0].shape) + len(call["sumdim"])
    axes: list[Axis] = [ONE] * rank
    for number in "123":
        own, absent = iter(call.axes("i" + number)), call["expand" + number]
        for dim in (d for d in range(rank) if d not in absent):
            axis = next(own)
            axes[dim] = axis if axes[dim].size == 1 else call.tie(axes[dim], axis)
    call.contract(*(axes[d] for d in call["sumdim"]))
    return [[call.space.resolve(axis) for d, axis in enumerate(axes) if d not in call["sumdim"]]]


@rule(
    aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable, zeros=taken("value"), literals=_attention,
    values=("dropout_p", "scale"),
)  # fmt: skip
def fused_attention(call: Call) -> list[list[Axis]]:
    """softmax(q k) v for each head: head dims of q and k are contracted, those of v carried; keys stay."""
    (result,), solved = solve(
        call, "n h q d, n h k d, n h k e -> n h q e", [call["query"], call["key"], call["value"]]
    )  # fmt: skip
    call.freeze(solved["k"], "the softmax of attention runs over this axis")
    mask = call.get("attn_bias", "attn_mask")
    if mask is not None:
        for axis, wanted in zip(
            reversed(call.axes(mask)), [solved["k"], solved["q"], solved["h"], solved["n"]], strict=False
        ):
            if axis.size == wanted.size:
                call.tie(axis, wanted)
    call.count(*solved.lookup("n h q k d"))
    call.count(*solved.lookup("n h q k e"))
    return [result, *(_statistics(call, n, solved.lookup("n h q")) for n in range(1, len(call.outputs)))]


def _statistics(call: Call, output: int, axes: list[Axis]) -> list[Axis]:
    """The axes of a further output (log-sum-exp for each query), some kernels' being padded or empty."""
    fixed = call.fixed(output)
    if len(fixed) < len(axes):
        return fixed
    return [a if a.size == f.size else f for a, f in zip(axes, fixed, strict=False)] + fixed[len(axes) :]


states(aten.scaled_dot_product_attention, literals=_attention, values=("dropout_p", "scale"))
