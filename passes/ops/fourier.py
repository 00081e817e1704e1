"""Fourier transforms: the transformed dimensions stay, the others are carried; and complex numbers seen as pairs."""

from __future__ import annotations

from passes.axes.expressions import Axis
from passes.ops.call import Call, aten
from passes.ops.table import rule
from passes.ops.zeros import CARRIED


@rule(aten._fft_r2c, aten._fft_c2c, aten._fft_c2r, zeros=CARRIED)
def fourier(call: Call) -> list[list[Axis]]:
    """Every frequency depends on every position of the transformed dimensions."""
    axes, fixed = call.axes("self"), call.fixed()
    transformed = [dim % len(axes) for dim in call["dim"]]
    call.freeze([axes[dim] for dim in transformed], "a Fourier transform runs over this axis")
    return [[fixed[dim] if dim in transformed else axis for dim, axis in enumerate(axes)]]


@rule(aten.view_as_real, zeros=CARRIED)
def view_as_real(call: Call) -> list[list[Axis]]:
    """Complex numbers as pairs along a new last dimension."""
    return [[*call.axes("self"), call.fixed()[-1]]]


@rule(aten.view_as_complex, zeros=CARRIED)
def view_as_complex(call: Call) -> list[list[Axis]]:
    """Pairs along the last dimension as complex numbers."""
    *axes, pair = call.axes("self")
    call.freeze(pair, "real and imaginary part of one number")
    return [axes]
