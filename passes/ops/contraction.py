"""Operators that multiply and sum: convolutions, matrix products, attention. These count MACs."""

from __future__ import annotations

from passes.axes.expressions import ONE, Axis
from passes.ops.equation import equation_rule, solve
from passes.ops.registry import Call, aten, rule
from passes.ops.zeros import NEVER, PRODUCT, product, taken

equation_rule([aten.mm], "m k, k n -> m n", ["self", "mat2"], macs="m k n", zeros=PRODUCT)
equation_rule([aten.bmm], "b m k, b k n -> b m n", ["self", "mat2"], macs="b m k n", zeros=PRODUCT)
# torch counts no FLOPs for products with one vector
equation_rule([aten.mv], "m k, k -> m", ["self", "vec"], zeros=PRODUCT)
equation_rule([aten.dot, aten.vdot], "k, k -> ", ["self", "tensor|other"], zeros=PRODUCT)
# A distance from zero is none; a coordinate that is zero on both sides adds nothing.
equation_rule([aten._cdist_forward], "... m k, ... n k -> ... m n", ["x1", "x2"], zeros=NEVER)


@rule(aten.addmm, aten.baddbmm, aten.addmv, zeros=product(["mat1|batch1|mat", "mat2|batch2|vec"], ["self"]))
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


@rule(aten.convolution, aten._convolution, zeros=product(["input", "weight"], ["bias"]))
def convolution(call: Call) -> list[list[Axis]]:
    """Convolution of any rank, grouped and transposed: MACs are the weight's elements at every place it is applied."""
    weight = "(g i) o *k" if call["transposed"] else "(g o) i *k"
    outputs, solved = solve(
        call, f"n (g i) *s, {weight}, (g o)? -> n (g o) *t",
        [call["input"], call["weight"], call["bias"]], {"g": call["groups"]},
    )  # fmt: skip
    call.literal("groups", solved["g"])
    call.count(*solved.lookup("n g o i *k"), *solved["*s" if call["transposed"] else "*t"])
    return outputs


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
    aten._scaled_dot_product_fused_attention_overrideable, zeros=taken("value"),
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
